# services.registry-cache: a pull-through cache for Docker Hub, and the prune of this host's own images.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    any
    attrNames
    concatMap
    concatStringsSep
    elem
    filterAttrs
    getExe
    hasPrefix
    last
    literalExpression
    mapAttrs
    mapAttrsToList
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    optional
    optionalAttrs
    removePrefix
    removeSuffix
    splitString
    toInt
    types
    versionAtLeast
    ;

  cfg = config.services.registry-cache;
  docker = config.virtualisation.docker;
  typed = import ./settings.nix { inherit lib; };
  toml = pkgs.formats.toml { };
  settingsType =
    options:
    types.submodule {
      freeformType = toml.type;
      inherit options;
    };
  withoutNull = filterAttrs (_: value: value != null);

  portOf = address: last (splitString ":" address);
  port = portOf cfg.settings.listen;
  fleetPort = if cfg.settings.fleet_listen == null then "5001" else portOf cfg.settings.fleet_listen;
  host = removeSuffix ":${port}" cfg.settings.listen;
  listensEverywhere = elem host [
    ""
    "0.0.0.0"
    "[::]"
  ];
  isLoopback = elem host [ "localhost" "[::1]" ] || hasPrefix "127." host;
  mirror = "http://${if listensEverywhere then "127.0.0.1" else host}:${port}";

  # Below /var/cache the directory is systemd's to make, for a user that exists only while the service runs.
  isDynamic = hasPrefix "/var/cache/" cfg.cacheDir;
  accounts = builtins.filter (name: name != null) (
    [ cfg.username ]
    ++ concatMap (registry: [
      registry.username
      (registry.settings.credential_helper or null)
      (registry.settings.client_cert or null)
    ]) (builtins.attrValues cfg.upstreams)
  );
  hasRules =
    cfg.htpasswdFile != null
    || any (name: cfg.settings.${name} or null != null) [ "access" "htpasswd" "client_ca" "oidc" ];
  speaksTls = cfg.tls.certificateFile != null || cfg.settings.tls_cert or null != null;
  inStore = path: path != null && hasPrefix "${builtins.storeDir}/" path;

  settingsFile = toml.generate "registry-cache.toml" (
    withoutNull cfg.settings
    // {
      cache_dir = cfg.cacheDir;
    }
    // optionalAttrs (cfg.username != null) { inherit (cfg) username; }
    // optionalAttrs (cfg.upstreams != { }) {
      upstreams = mapAttrs (
        _: registry:
        withoutNull registry.settings
        // optionalAttrs (registry.username != null) { inherit (registry) username; }
      ) cfg.upstreams;
    }
  );
  # By the names under which systemd hands them to the service.
  credentials = optional (cfg.passwordFile != null) "password:${cfg.passwordFile}"
    ++ mapAttrsToList (name: registry: "password.${name}:${registry.passwordFile}") (
      filterAttrs (_: registry: registry.passwordFile != null) cfg.upstreams
    )
    ++ optional (cfg.htpasswdFile != null) "htpasswd:${cfg.htpasswdFile}"
    ++ optional (cfg.tls.certificateFile != null) "tls.cert:${cfg.tls.certificateFile}"
    ++ optional (cfg.tls.keyFile != null) "tls.key:${cfg.tls.keyFile}"
    ++ optional (cfg.fleet.keyFile != null) "fleet.key:${cfg.fleet.keyFile}"
    ++ optional (cfg.fleet.tlsKeyFile != null) "fleet.tls-key:${cfg.fleet.tlsKeyFile}"
    ++ optional (cfg.fleet.redisPasswordFile != null) "fleet.redis-password:${cfg.fleet.redisPasswordFile}"
    ++ optional (cfg.fleet.s3CredentialsFile != null) "fleet.s3-credentials:${cfg.fleet.s3CredentialsFile}";
  passwordFile = mkOption {
    type = types.nullOr types.path;
    default = null;
    apply = path: if path == null then null else toString path;
    example = literalExpression "config.sops.secrets.dockerhub.path";
    description = ''
      File that holds the account's access token (PAT), outside the Nix store. systemd reads it as root and hands the
      service a copy when it starts, so it needs no owner and no group: root's, mode 0400, is right.
    '';
  };
  pruneFile = toml.generate "registry-cache-prune.toml" { prune = withoutNull cfg.prune.settings; };

  prunesAll = any (
    flag: flag == "--all" || builtins.match "-[a-z]*a[a-z]*" flag != null
  ) docker.autoPrune.flags;

  # Of both services. What they need on top, or must do without, stands beside it.
  hardening = {
    CapabilityBoundingSet = "";
    DevicePolicy = "closed";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
    # A core dump would hold the token.
    LimitCORE = 0;
  };
in
{
  options.services.registry-cache = {
    enable = mkEnableOption "registry-cache, a pull-through cache for Docker Hub";

    package = mkOption {
      type = types.package;
      default = pkgs.registry-cache or (pkgs.callPackage ../package.nix { });
      defaultText = literalExpression "pkgs.registry-cache or (pkgs.callPackage ../package.nix { })";
      description = "The registry-cache package to use.";
    };

    settings = mkOption {
      type = settingsType typed.serve;
      default = { };
      example = literalExpression ''
        {
          listen = "127.0.0.1:5000";
          max_size = "200GB";
          tag_ttl = "1h";
        }
      '';
      description = ''
        Settings of the cache, the keys of its TOML file. `registry-cache serve --help` explains them all.
        The file is world-readable in the Nix store: the account's token belongs into
        {option}`services.registry-cache.passwordFile`.
      '';
    };

    username = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "ci";
      description = "Account for upstream; anonymous without it.";
    };

    inherit passwordFile;

    upstreams = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = {
            inherit passwordFile;
            username = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "ci";
              description = "Account for this registry; anonymous without it.";
            };
            settings = mkOption {
              type = settingsType typed.upstream;
              default = { };
              example = literalExpression ''{ tag_ttl = "30d"; }'';
              description = "What is this registry's own; the keys of its table in the TOML file.";
            };
          };
        }
      );
      default = { };
      example = literalExpression ''
        {
          "ghcr.io" = {
            username = "ci";
            passwordFile = config.sops.secrets.ghcr.path;
          };
          "registry.k8s.io".settings.tag_ttl = "30d";
        }
      '';
      description = "Registries that are served beside the default one, by the names that their images have.";
    };

    cacheDir = mkOption {
      type = types.path;
      default = "/var/cache/registry-cache";
      apply = toString;
      example = "/srv/registry-cache";
      description = ''
        Where cached content lives. Below {file}`/var/cache` it belongs to a dynamic user; anywhere else to the static
        user `registry-cache`. It is no part of the system's closure, and nothing ever removes it.
      '';
    };

    htpasswdFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      apply = path: if path == null then null else toString path;
      example = "/run/secrets/registry-cache-users";
      description = ''
        Users that may log in, as `htpasswd -B` makes it, outside the Nix store. systemd hands the service a copy when it
        starts: another user needs a restart.
      '';
    };

    tls = {
      certificateFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/var/lib/acme/cache.example.org/fullchain.pem";
        description = ''
          The certificate, with its chain, that clients see: they speak TLS then. systemd hands the service a copy of it and
          of its key when it starts, so a renewed one needs a restart.
        '';
      };
      keyFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/var/lib/acme/cache.example.org/key.pem";
        description = "Its key, outside the Nix store. It needs no owner and no group: root's, mode 0400, is right.";
      };
    };

    fleet = {
      keyFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/run/secrets/registry-cache-fleet";
        description = ''
          The key by which replicas know each other: at least 32 bytes, the same for all, outside the Nix store. It goes
          with {option}`services.registry-cache.settings.fleet_redis_url`.
        '';
      };
      tlsKeyFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/run/secrets/fleet-tls.key";
        description = ''
          Key of this replica's certificate among replicas, outside the Nix store. It goes with
          {option}`services.registry-cache.settings.fleet_tls_cert` and `fleet_tls_ca`.
        '';
      };
      redisPasswordFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/run/secrets/redis";
        description = "File that holds the password of the fleet's Redis, outside the Nix store.";
      };
      s3CredentialsFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        apply = path: if path == null then null else toString path;
        example = "/run/secrets/fleet-s3";
        description = ''
          AWS credentials file with the keys of the fleet's bucket, outside the Nix store. It goes with
          {option}`services.registry-cache.settings.fleet_bucket_url` and `fleet_max_size`.
        '';
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether to open the port of {option}`services.registry-cache.settings.fleet_listen` in the firewall, for every
          address. Who has not the key gets nothing there; where others share the network, let the replicas in by rules
          of your own.
        '';
      };
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the port of {option}`services.registry-cache.settings.listen` in the firewall.";
    };

    docker.enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether this host's dockerd uses the cache: its address is added to
        {option}`virtualisation.docker.daemon.settings.registry-mirrors`. Changing that restarts dockerd.
      '';
    };

    prune = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether to prune this host's own images when its disk runs full, in place of
          {option}`virtualisation.docker.autoPrune`. It works with and without the cache.
        '';
      };

      schedule = mkOption {
        type = types.str;
        default = "*:0/15";
        example = "hourly";
        description = "When to look at the disk, in the format of {manpage}`systemd.time(7)`.";
      };

      randomizedDelay = mkOption {
        type = types.str;
        default = "2min";
        example = "0";
        description = "Each look is put off by a random time up to this long, so that a fleet does not look at once.";
      };

      settings = mkOption {
        type = settingsType typed.prune;
        default = { };
        example = literalExpression ''
          {
            free_below = "20%";
            keep = [ "postgres:*" ];
          }
        '';
        description = ''
          The policy, the keys of the table `[prune]` in a TOML file of its own. `registry-cache prune --help` explains
          them all.
        '';
      };
    };
  };

  config = mkMerge [
    # `registry-cache stats`, `doctor`, `guard` and the others.
    (mkIf (cfg.enable || cfg.prune.enable) { environment.systemPackages = [ cfg.package ]; })

    (mkIf cfg.enable {
      assertions = [
        {
          assertion = cfg.passwordFile == null || cfg.username != null;
          message = "services.registry-cache.passwordFile is set but username is not: set both, or neither to pull anonymously.";
        }
        {
          assertion = cfg.username == null || cfg.passwordFile != null;
          message = "services.registry-cache.username is set but passwordFile is not: set both, or neither to pull anonymously.";
        }
        {
          assertion = !inStore cfg.passwordFile;
          message = ''
            services.registry-cache.passwordFile is ${toString cfg.passwordFile}: everybody can read the Nix store.
            Name a file outside of it as a string, such as config.sops.secrets.dockerhub.path or "/run/keys/dockerhub".
          '';
        }
      ]
      ++ concatMap (
        name:
        let
          registry = cfg.upstreams.${name};
        in
        [
          {
            assertion = (registry.username == null) == (registry.passwordFile == null);
            message = "services.registry-cache.upstreams.\"${name}\": set username and passwordFile both, or neither to pull anonymously.";
          }
          {
            assertion = !inStore registry.passwordFile;
            message = "services.registry-cache.upstreams.\"${name}\".passwordFile is ${toString registry.passwordFile}: everybody can read the Nix store.";
          }
          {
            assertion = registry.settings.access or null != "forward" || registry.username == null;
            message = "services.registry-cache.upstreams.\"${name}\" has access = \"forward\" and a username: clients' own logins are used there, and nothing else.";
          }
          {
            assertion = !any (key: registry.settings ? ${key}) [ "username" "password_file" ];
            message = "services.registry-cache.upstreams.\"${name}\".settings has username or password_file in it: these are options beside it.";
          }
        ]
      ) (attrNames cfg.upstreams)
      ++ [
        {
          assertion = hasPrefix "/" cfg.cacheDir && !inStore cfg.cacheDir && !elem cfg.cacheDir [ "/" "/var" "/var/cache" ];
          message = "services.registry-cache.cacheDir is ${cfg.cacheDir}: allowed is a directory of its own, such as /var/cache/registry-cache.";
        }
        {
          assertion = !any (key: cfg.settings ? ${key}) [ "cache_dir" "username" "password_file" "prune" "upstreams" ];
          message = ''
            services.registry-cache.settings has cache_dir, username, password_file, prune or upstreams in it: these are
            options of their own, services.registry-cache.{cacheDir,username,passwordFile,prune.settings,upstreams}.
          '';
        }
        {
          assertion = isLoopback || accounts == [ ] || hasRules || cfg.settings.open_to_all or null == true;
          message = ''
            services.registry-cache listens on ${cfg.settings.listen} and has an account: whoever reaches this port could
            pull whatever ${builtins.head accounts} can, private repositories too. Set settings.listen = "127.0.0.1:${port}",
            say who may pull (settings.access), leave usernames out, or set settings.open_to_all = true if everybody there may.
          '';
        }
        {
          assertion = (cfg.tls.certificateFile == null) == (cfg.tls.keyFile == null);
          message = "services.registry-cache.tls has a certificateFile or a keyFile: set both, or neither.";
        }
        {
          assertion = !inStore cfg.htpasswdFile;
          message = "services.registry-cache.htpasswdFile is ${toString cfg.htpasswdFile}: everybody can read the Nix store.";
        }
        {
          assertion = !inStore cfg.tls.keyFile;
          message = "services.registry-cache.tls.keyFile is ${toString cfg.tls.keyFile}: everybody can read the Nix store.";
        }
        {
          assertion = (cfg.settings.fleet_redis_url or null != null) == (cfg.fleet.keyFile != null || cfg.settings.fleet_key_file or null != null);
          message = "services.registry-cache has fleet.keyFile or settings.fleet_redis_url: set both, or neither.";
        }
        {
          assertion = (cfg.settings.fleet_bucket_url or null != null) == (cfg.fleet.s3CredentialsFile != null || cfg.settings.fleet_s3_credentials_file or null != null);
          message = "services.registry-cache has fleet.s3CredentialsFile or settings.fleet_bucket_url: set both, or neither.";
        }
        {
          assertion = (cfg.settings.fleet_tls_cert or null != null) == (cfg.fleet.tlsKeyFile != null || cfg.settings.fleet_tls_key or null != null);
          message = "services.registry-cache has fleet.tlsKeyFile or settings.fleet_tls_cert: set both, or neither.";
        }
        {
          assertion = cfg.fleet.openFirewall -> cfg.settings.fleet_redis_url or null != null;
          message = "services.registry-cache.fleet.openFirewall is set but settings.fleet_redis_url is not: without it nobody listens on that port.";
        }
        {
          assertion = !inStore cfg.fleet.keyFile && !inStore cfg.fleet.tlsKeyFile && !inStore cfg.fleet.redisPasswordFile && !inStore cfg.fleet.s3CredentialsFile;
          message = "services.registry-cache.fleet has a keyFile, tlsKeyFile, redisPasswordFile or s3CredentialsFile in the Nix store: everybody can read that.";
        }
        {
          assertion = cfg.docker.enable -> docker.enable;
          message = "services.registry-cache.docker.enable is set but virtualisation.docker.enable is not: there is no dockerd to use the cache.";
        }
        {
          assertion = cfg.docker.enable -> (isLoopback || listensEverywhere) && !speaksTls;
          message = ''
            services.registry-cache.docker.enable would make ${mirror} this host's mirror: plain HTTP on an address that
            is not loopback, or on a port that speaks TLS. Set settings.listen = "127.0.0.1:${port}", or "0.0.0.0:${port}" to
            serve other hosts too; with TLS, name the mirror by the certificate's name in virtualisation.docker.daemon.settings.
          '';
        }
      ];

      warnings =
        optional (isLoopback && cfg.openFirewall) ''
          services.registry-cache.openFirewall has no use: nobody but this host reaches ${cfg.settings.listen}.
        '';

      networking.firewall.allowedTCPPorts =
        optional cfg.openFirewall (toInt port) ++ optional cfg.fleet.openFirewall (toInt fleetPort);

      virtualisation.docker.daemon.settings = mkIf cfg.docker.enable { registry-mirrors = [ mirror ]; };

      users = mkIf (!isDynamic) {
        users.registry-cache = {
          isSystemUser = true;
          group = "registry-cache";
          description = "registry-cache";
        };
        groups.registry-cache = { };
      };
      systemd.tmpfiles.rules = mkIf (!isDynamic) [ "d ${cfg.cacheDir} 0700 registry-cache registry-cache -" ];

      systemd.services.registry-cache = {
        description = "Pull-through cache for Docker Hub";
        wantedBy = [ "multi-user.target" ];
        # dockerd finds its mirror ready. Neither waits for the network: the cache starts, and serves what it has, without it.
        before = [ "docker.service" ];
        unitConfig = {
          # A cache that does not become ready holds dockerd up for this long and no longer; it goes on trying.
          JobRunningTimeoutSec = "30s";
          StartLimitIntervalSec = 0;
        }
        // optionalAttrs (!isDynamic) { RequiresMountsFor = [ cfg.cacheDir ]; };
        serviceConfig =
          hardening
          // {
            Type = "notify";
            # By it the cache tells a killed run from a machine that went down; ProcSubset hides the kernel's own file.
            Environment = [ "BOOT_ID=%b" ];
            ExecStart = "${getExe cfg.package} serve --config ${settingsFile}";
            # Certificates that it reads by their own names are read again.
            ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";

            # A stuck event loop is killed and started again. Wrong settings (exit code 2) wait for a person.
            WatchdogSec = "30s";
            Restart = "always";
            RestartPreventExitStatus = 2;
            RestartSec = mkDefault "5s";
            TimeoutStartSec = "5min";
            TimeoutStopSec = "1min";

            # Pages of the files that it serves count too, and are given back first.
            MemoryMax = mkDefault "50%";
            TasksMax = mkDefault 4096;
            LimitNOFILE = 262144;

            # Metadata services of clouds are there. Where the name server is, too: IPAddressAllow with its address.
            IPAddressDeny = "link-local";
            PrivateUsers = true;
            ProcSubset = "pid";
            ProtectHome = true;
            ProtectProc = "invisible";
            RestrictAddressFamilies = [ "AF_INET AF_INET6 AF_UNIX" ];
            # Passwords are compared by a process of the idle class: hits do not wait for it.
            SystemCallFilter = hardening.SystemCallFilter ++ [ "sched_setscheduler" ];
          }
          # The first restart comes soon, the later ones ever later.
          // optionalAttrs (versionAtLeast config.systemd.package.version "254") {
            RestartSec = mkDefault "1s";
            RestartSteps = mkDefault 6;
            RestartMaxDelaySec = mkDefault "1min";
          }
          // optionalAttrs (credentials != [ ]) { LoadCredential = credentials; }
          // (
            if isDynamic then
              {
                DynamicUser = true;
                CacheDirectory = removePrefix "/var/cache/" cfg.cacheDir;
                CacheDirectoryMode = "0700";
              }
            else
              {
                User = "registry-cache";
                Group = "registry-cache";
                ReadWritePaths = [ cfg.cacheDir ];
              }
          );
      };
    })

    (mkIf cfg.prune.enable {
      assertions = [
        {
          assertion = docker.enable || cfg.prune.settings.docker_host != null;
          message = "services.registry-cache.prune.enable is set but virtualisation.docker.enable is not: set it, or prune.settings.docker_host.";
        }
        {
          assertion = !(docker.autoPrune.enable && prunesAll);
          message = ''
            virtualisation.docker.autoPrune removes every image that no container uses (flags: ${concatStringsSep " " docker.autoPrune.flags}),
            which is what services.registry-cache.prune is there to avoid. Set virtualisation.docker.autoPrune.enable = false.
          '';
        }
        {
          assertion = !cfg.prune.settings ? state_file;
          message = "services.registry-cache.prune.settings.state_file: the record is in /var/lib/registry-cache, leave it out.";
        }
      ];

      warnings = optional (docker.autoPrune.enable && !prunesAll) ''
        virtualisation.docker.autoPrune is enabled beside services.registry-cache.prune: it removes dangling images of any
        age, stopped containers and networks, also while a run is under way.
      '';

      # Whoever may open it may hold it, and keep the prune and all runs waiting.
      systemd.tmpfiles.rules = [
        (
          if cfg.prune.settings.lock_group or null == null then
            "f ${cfg.prune.settings.lock_file} 0666 root root -"
          else
            "f ${cfg.prune.settings.lock_file} 0660 root ${cfg.prune.settings.lock_group} -"
        )
      ];

      systemd.services.registry-cache-prune = {
        description = "Prune the host's Docker images when its disk runs full";
        after = [ "docker.service" ];
        # A switch neither starts nor interrupts it.
        restartIfChanged = false;
        unitConfig.X-StopOnRemoval = false;
        serviceConfig =
          hardening
          // {
            Type = "oneshot";
            ExecStart = "${getExe cfg.package} prune --apply --config ${pruneFile}";
            StateDirectory = "registry-cache";
            ReadWritePaths = [ "-${dirOf cfg.prune.settings.lock_file}" ];
            TimeoutStartSec = "1h";
            # Stopped: it finishes the image under way, and says so.
            SuccessExitStatus = 143;
            Nice = 19;
            IOSchedulingClass = "idle";
            MemoryMax = mkDefault "512M";
            TasksMax = mkDefault 64;

            # root, because Docker's socket and the times of its images' files are root's; without root's capabilities.
            IPAddressDeny = "any";
            PrivateNetwork = true;
            ProtectHome = "read-only";
            RestrictAddressFamilies = [ "AF_UNIX" ];
          }
          # A docker that was stopped on purpose is not started through its socket.
          // optionalAttrs (cfg.prune.settings.docker_host == null) {
            ExecCondition = "${config.systemd.package}/bin/systemctl is-active --quiet docker.service";
          };
      };

      systemd.timers.registry-cache-prune = {
        description = "Look whether the host's disk runs full of Docker images";
        wantedBy = [ "timers.target" ];
        timerConfig = {
          OnCalendar = cfg.prune.schedule;
          RandomizedDelaySec = cfg.prune.randomizedDelay;
          Persistent = true;
        };
      };
    })
  ];
}
