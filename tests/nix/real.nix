# The example host in a whole NixOS system of a real nixpkgs, with docker and, when it is given, sops-nix; see real.sh.
{
  nixpkgs,
  sopsNix ? null,
  pkgsFile ? null,
}:

let
  lib = import (nixpkgs + "/lib");
  base =
    { config, ... }:
    {
      imports = lib.optional (sopsNix != null) (sopsNix + "/modules/sops");
      config = lib.mkMerge [
        {
          boot.loader.grub.device = "/dev/vda";
          fileSystems."/" = {
            device = "/dev/vda1";
            fsType = "ext4";
          };
          system.stateVersion = lib.trivial.release;
          documentation.enable = false; # it is on the path too, and slow
        }
        (lib.optionalAttrs (pkgsFile != null) { nixpkgs.pkgs = import pkgsFile { inherit lib nixpkgs; }; })
        (lib.optionalAttrs (sopsNix != null) {
          sops.defaultSopsFile = ./host.nix; # any file: nothing is built
          sops.validateSopsFiles = false;
          sops.age.keyFile = "/var/lib/sops/key.txt";
          sops.secrets.dockerhub.restartUnits = [ "registry-cache.service" ];
          services.registry-cache.passwordFile = lib.mkForce config.sops.secrets.dockerhub.path;
        })
      ];
    };
  evalConfig =
    modules:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib;
      system = "x86_64-linux";
      modules = [ base ] ++ modules;
    };
  # One evaluation each: it takes its time.
  read =
    change:
    let
      system = evalConfig (import ./example.nix { inherit lib; } ++ [ change ]);
      ours = name: _: lib.hasPrefix "registry-cache" name || name == "docker.service";
    in
    removeAttrs (import ./host.nix {
      inherit lib;
      evalConfig = _: system;
    } change) [ "units" ]
    // {
      units = lib.mapAttrs (_: unit: unit.text) (lib.filterAttrs ours system.config.systemd.units);
    };
in
{
  release = lib.trivial.release;
  host = read { };
  without = read {
    services.registry-cache.enable = lib.mkForce false;
    services.registry-cache.prune.enable = lib.mkForce false;
  };
}
