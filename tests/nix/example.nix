# The example host: the modules that make it.
{ lib }:

[
  ../../nix/modules/registry-cache.nix
  {
    virtualisation.docker.enable = true;
    # Another mirror of the operator's: both stay.
    virtualisation.docker.daemon.settings.registry-mirrors = lib.mkBefore [ "https://mirror.example" ];
    services.registry-cache = {
      enable = true;
      docker.enable = true;
      username = "ci";
      passwordFile = "/run/secrets/dockerhub";
      settings.max_size = "200GB";
      prune.enable = true;
      prune.settings.keep = [ "postgres:*" ];
    };
  }
]
