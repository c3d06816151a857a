# The module in a whole NixOS system, evaluated: what reaches dockerd, and that nothing of it is left without the module.
{ nixpkgs, pkgs }:

let
  inherit (nixpkgs) lib;
  evaluate = import ../../tests/nix/host.nix {
    inherit lib;
    evalConfig =
      modules:
      lib.nixosSystem {
        modules = modules ++ [
          {
            nixpkgs.pkgs = pkgs;
            documentation.enable = false; # it is on the path too, and slow
          }
        ];
      };
  };
  facts = evaluate { };
  without = evaluate { services.registry-cache.enable = lib.mkForce false; };
in
assert facts.failedAssertions == [ ];
assert
  facts.registryMirrors == [
    "https://mirror.example"
    "http://127.0.0.1:5000"
  ];
assert without.registryMirrors == [ "https://mirror.example" ];
pkgs.writeText "registry-cache-module.json" (builtins.toJSON facts)
