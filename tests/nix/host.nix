# The example host of docs/nix.md as a module, and what is read off it. Used with the stub (everywhere) and with a real
# nixpkgs (real.sh, the flake's checks).
{ lib, evalConfig }:

change:

let
  inherit (evalConfig (import ./example.nix { inherit lib; } ++ [ change ])) config;
in
{
  failedAssertions = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  inherit (config) warnings;
  registryMirrors = config.virtualisation.docker.daemon.settings.registry-mirrors or [ ];
  ports = config.networking.firewall.allowedTCPPorts;
  hasCommand = builtins.any (
    package: toString package == toString config.services.registry-cache.package
  ) config.environment.systemPackages;
  hasUser = config.users.users ? registry-cache;
  tmpfiles = builtins.filter (rule: builtins.match ".*registry-cache.*" rule != null) config.systemd.tmpfiles.rules;
  units = builtins.listToAttrs (
    map
      (unit: {
        inherit (unit) name;
        value = unit.from;
      })
      (
        builtins.filter (unit: unit.from != null) [
          {
            name = "registry-cache.service";
            from = config.systemd.services.registry-cache or null;
          }
          {
            name = "registry-cache-prune.service";
            from = config.systemd.services.registry-cache-prune or null;
          }
          {
            name = "registry-cache-prune.timer";
            from = config.systemd.timers.registry-cache-prune or null;
          }
        ]
      )
  );
}
