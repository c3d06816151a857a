# A STUB of NixOS for the tests: the options of others that our module sets or reads, and a pkgs of two packages.
# `evaluate` is what tests/nix/host.nix makes of it; `settings` are the names that the module types.
{
  systemdVersion ? "252",
}:

let
  lib = import ./lib.nix;
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "Another module's.";
    };
  store = name: "${builtins.storeDir}/00000000000000000000000000000000-${name}";

  nixos.options = {
    assertions = option (types.listOf types.attrs) [ ];
    warnings = option (types.listOf types.str) [ ];
    environment.systemPackages = option (types.listOf types.package) [ ];
    networking.firewall.allowedTCPPorts = option (types.listOf types.ints.unsigned) [ ];
    users.users = option types.attrs { };
    users.groups = option types.attrs { };
    systemd = {
      package = option types.package {
        outPath = store "systemd";
        version = systemdVersion;
      };
      services = option types.attrs { };
      timers = option types.attrs { };
      tmpfiles.rules = option (types.listOf types.str) [ ];
    };
    virtualisation.docker = {
      enable = option types.bool false;
      autoPrune.enable = option types.bool false;
      autoPrune.flags = option (types.listOf types.str) [ ];
      daemon.settings = option types.attrs { };
    };
  };
  pkgs = {
    coreutils = store "coreutils";
    registry-cache = {
      outPath = store "registry-cache";
      meta.mainProgram = "registry-cache";
    };
    # The file has the settings as JSON: the tests make TOML of it.
    formats.toml = _: {
      type = types.anything;
      generate = name: value: builtins.toFile name (builtins.toJSON value);
    };
  };
  evalConfig =
    modules:
    lib.evalModules {
      modules = [ nixos ] ++ modules;
      args = { inherit lib pkgs; };
    };

  flatten =
    where: options:
    builtins.concatLists (
      builtins.attrValues (
        builtins.mapAttrs (
          name: found:
          if (found._type or "") == "option" then
            [
              {
                name = where + name;
                description = found.description or "";
              }
            ]
            ++ flatten "${where}${name}." (found.type.submodule or { })
          else
            flatten "${where}${name}." found
        ) options
      )
    );
in
{
  evaluate = import ../host.nix { inherit lib evalConfig; };
  options = flatten "" (evalConfig [ ../../../nix/modules/registry-cache.nix ]).options.services;
  inherit lib store;
}
