{
  description = "A pull-through cache for Docker Hub, and a careful cleaner of the host's own images";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forEachSystem =
        f:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: f (nixpkgs.legacyPackages.${system}.extend self.overlays.default)
        );
    in
    {
      overlays.default = final: _previous: {
        registry-cache = final.callPackage ./nix/package.nix { };
      };

      packages = forEachSystem (pkgs: {
        inherit (pkgs) registry-cache;
        default = pkgs.registry-cache;
      });

      nixosModules = {
        registry-cache = ./nix/modules/registry-cache.nix;
        default = self.nixosModules.registry-cache;
      };

      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.registry-cache ];
          packages = [
            pkgs.gnumake
            pkgs.mypy
            pkgs.ruff
            pkgs.skopeo
          ];
        };
      });

      checks = forEachSystem (pkgs: {
        package = pkgs.registry-cache;
        module = import ./nix/tests/module.nix { inherit nixpkgs pkgs; };
        two-nodes = pkgs.testers.runNixOSTest (import ./nix/tests/two-nodes.nix { source = self; });
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-rfc-style);
    };
}
