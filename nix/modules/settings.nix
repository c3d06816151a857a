# The settings of the TOML file, typed. Those that are null are left to the program; tests/nix holds this list and the
# program's own against each other.
{ lib }:

let
  inherit (lib) mkOption types;

  size = types.either types.ints.unsigned types.str;
  duration = types.either types.ints.unsigned types.str;

  setting =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };
in
{
  serve = {
    listen = mkOption {
      type = types.strMatching "(.*):([0-9]+)";
      default = "127.0.0.1:5000";
      example = "[::1]:5000";
      description = ''
        Address and port to listen on. On another address than loopback, whoever reaches the port could pull whatever
        {option}`services.registry-cache.username` can, private repositories too: with an account it needs rules
        ({option}`services.registry-cache.settings.access`), or {option}`services.registry-cache.settings.open_to_all`.
      '';
    };
    open_to_all = setting types.bool true "Whether whoever reaches listen may pull what the account can. Without it a cache that has an account listens on loopback only. Default: false.";
    tls_cert = setting types.str "/var/lib/acme/cache.example.org/fullchain.pem" "PEM file of the certificate, with its chain, that clients see: they speak TLS then. Read again when it changes.";
    tls_key = setting types.str "/var/lib/acme/cache.example.org/key.pem" "PEM file of its key, readable for the service. Default: what services.registry-cache.tls.keyFile names.";
    client_ca = setting types.str "/etc/ssl/clients-ca.pem" "PEM file of authorities whose certificates clients may show.";
    htpasswd = setting types.str "/etc/registry-cache/htpasswd" "File of users that may log in, as htpasswd -B makes it. Default: what services.registry-cache.htpasswdFile names.";
    public_url = setting types.str "https://cache.example.org" "By which clients call the cache, where a proxy in front speaks TLS for it.";
    listen_socket = setting types.str "/run/registry-cache/pull.sock" "A Unix socket for clients on this host, beside listen: rules know them by their user (uids).";
    oidc = setting (types.attrsOf types.attrs) { github = { issuer = "https://token.actions.githubusercontent.com"; audience = "cache.corp"; }; } "Issuers whose tokens are logins, by names for the rules: the tables [oidc.NAME] of docs/access.md.";
    limits = setting (types.listOf types.attrs) [ { networks = [ "10.1.0.0/16" ]; flights = 8; } ] "How much each client may have: the tables [[limits]] of docs/access.md. Default: no limit.";
    access = setting (types.listOf types.attrs) [ { networks = [ "10.1.0.0/16" ]; } ] "Who may pull what, in order: the tables [[access]] of docs/access.md. Default: with htpasswd or client_ca whoever is known, else everybody.";
    admin_networks = setting (types.listOf types.str) [ "10.1.0.0/16" ] "Networks that may read /_stats, /metrics and the page on listen. Default: everybody; with ops_listen loopback only.";
    ops_listen = setting (types.strMatching "(.*):([0-9]+)") "127.0.0.1:5001" "A second address, for /_stats, /metrics and the page alone: whoever reaches it reads them. Default: none.";
    max_size = setting size "200GB" "The cap: blobs and partials together never take more bytes. Default: 20GB.";
    min_free = setting size "5GB" "Free disk space that is never used up. Default: the smaller of 1 GB and 5 % of the filesystem.";
    default_registry = setting types.str "ghcr.io" "The registry's name in images; requests that name no registry mean it. Default: docker.io.";
    aliases = setting (types.listOf types.str) [ "registry.corp:5443" ] "Other names that images have for it. Docker Hub's are known.";
    upstream = setting types.str "https://registry-1.docker.io" "The registry that misses are fetched from. Default: https:// and default_registry.";
    allow_unlisted = setting (types.listOf types.str) [ "*.gcr.io" ] "Names of further registries that are asked when a client names them: over https, without an account, on public addresses only. Default: none.";
    ca_file = setting types.str "/etc/ssl/internal-ca.pem" "PEM file of certificate authorities to trust beside the system's.";
    trusted_realms = setting (types.listOf types.str) [ "auth.example" ] "Hosts that may be sent the credential beside upstream's own host and domain.";
    private_hosts = setting (types.listOf types.str) [ "blobs.internal" ] "Hosts on private addresses that upstream may redirect to, or name as its token service; needed where upstream itself is public.";
    anonymous_fallback = setting types.bool true "Whether to go on without the account when upstream rejects the credential. Default: false.";
    hosts = setting (types.listOf types.str) [ "cache.example.org" ] "Names by which clients call the cache, beside localhost and addresses. Default: on loopback no others, elsewhere any.";
    tag_ttl = setting duration "1h" "How long a tag is served without asking upstream again. Default: 15m.";
    keep_deleted_tags = setting types.bool true "Whether to keep serving a cached tag that upstream has deleted or made private. Default: false.";
    connect_timeout = setting duration "5s" "For the connection to upstream, TLS included. Default: 5s.";
    read_timeout = setting duration "15s" "A read from upstream that stalls this long counts as broken. Default: 15s.";
    request_timeout = setting duration "25s" "The longest a client waits for the first byte of uncached content. Default: 25s.";
    stale_timeout = setting duration "2500ms" "How long upstream may take to confirm an expired tag before the stale one is served. Default: 2.5s.";
    rate_limit_wait = setting duration "15s" "The longest an uncached pull waits for upstream's rate limit to pass. Default: 15s.";
    negative_ttl = setting duration "10s" "How long upstream's no to a tag, manifest, blob or list is answered from memory; 0: never. Default: 10s.";
    retries = setting types.ints.unsigned 5 "How often a broken transfer from upstream is taken up again. Default: 5.";
    max_flights = setting types.ints.positive 32 "Blobs fetched from upstream at the same time. Default: 32.";
    blob_connections = setting types.ints.positive 1 "Connections for one blob of which more than 32 MiB are left, where upstream gives each less than 400 Mbit/s; 1: always one. Default: 4.";
    prefetch_concurrency = setting types.ints.unsigned 6 "Layers fetched before a running pull asks for them, at the same time; 0: none. Default: 6.";
    prefetch_max_size = setting size "2GB" "The most bytes fetched ahead that no client has asked for yet (at most a quarter of max_size). Default: 2GB.";
    fleet_redis_url = setting types.str "redis://redis.internal:6379" "Redis or Valkey by which replicas find each other, without a password in it (redis+sentinel://sentinel1,sentinel2/mymaster behind sentinels); without it there is no fleet.";
    fleet_redis_password_file = setting types.str "/run/secrets/redis" "File that holds its password, readable for the service. Default: what services.registry-cache.fleet.redisPasswordFile names.";
    fleet_name = setting types.str "docker.io" "Replicas of one name share what they fetch: the same registries by the same account. Default: docker.io.";
    fleet_key_file = setting types.str "/run/secrets/fleet-key" "File of at least 32 bytes, the same for all replicas, readable for the service. Default: what services.registry-cache.fleet.keyFile names.";
    fleet_listen = setting (types.strMatching "(.*):([0-9]+)") ":5001" "Address and port where other replicas fetch from this one. Default: :5001.";
    fleet_advertise = setting (types.strMatching "(.*):([0-9]+)") "10.0.0.5:5001" "Where the others reach that. Default: the host of fleet_listen, else this machine's address on its way to Redis.";
    fleet_peers = setting (types.listOf types.str) [ "10.0.0.0/8" ] "Networks that replicas are in. Default: private ones and loopback.";
    fleet_followers = setting types.ints.positive 4 "Replicas that one sends the same blob to; further ones get it from those. Default: 4.";
    fleet_tls_cert = setting types.str "/etc/registry-cache/fleet.pem" "Certificate that this replica shows the others (PEM); with it they speak TLS to each other.";
    fleet_tls_key = setting types.str "/run/secrets/fleet-tls.key" "Its key, readable for the service. Default: what services.registry-cache.fleet.tlsKeyFile names.";
    fleet_tls_ca = setting types.str "/etc/registry-cache/fleet-ca.pem" "The fleet's own authority (PEM): who has a certificate of it is a replica, whatever its name.";
    fleet_bucket_url = setting types.str "https://s3.internal/registry-cache" "Bucket of an S3-compatible store that replicas share, and a prefix if it is not all theirs.";
    fleet_s3_region = setting types.str "us-east-1" "Region that requests to it are signed for. Default: us-east-1.";
    fleet_s3_credentials_file = setting types.str "/run/secrets/fleet-s3" "AWS credentials file with its keys, readable for the service. Default: what services.registry-cache.fleet.s3CredentialsFile names.";
    fleet_max_size = setting size "10TB" "Cap of the bucket: what has not been used for the longest is deleted there.";
    fleet_redirect = setting size "64MB" "Clients are sent to the bucket for blobs of at least this size that are there and not here. They have to reach it, and nobody but they verifies what they get. Default: off.";
    max_connections = setting types.ints.positive 2048 "Client connections served at the same time. Default: 2048.";
    client_timeout = setting duration "1m" "A client that neither sends its request nor takes a byte for this long is dropped. Default: 1m.";
    scrub_rate = setting size "10MB" "Bytes per second that the background scrub re-hashes; 0 turns it off. Default: 10MB.";
    shutdown_grace = setting duration "30s" "How long running transfers may go on when the service stops. Default: 30s.";
    log_format = setting (types.enum [ "json" "console" ]) "json" "Format of the log. Default: json.";
    log_level = setting (types.enum [ "debug" "info" "warning" "error" ]) "info" "The least severe event logged. Default: info.";
  };

  # Of one registry beside the default one; what it does not set is as it is for all.
  upstream = {
    url = setting types.str "https://registry.corp:5443" "Where it is asked. Default: https:// and its name.";
    aliases = setting (types.listOf types.str) [ "registry.corp:5443" ] "Other names that images have for it.";
    credential_helper = setting types.str "ecr-login" "NAME of a docker-credential-NAME in the service's path that knows the account.";
    credential_lifetime = setting duration "30m" "How long what the helper gives is used, where it does not say itself when it ends. Default: 30m.";
    helper_env = setting (types.attrsOf types.str) { AWS_PROFILE = "ci"; } "Environment variables for the helper; nothing secret.";
    client_cert = setting types.str "/run/credentials/registry-cache.service/corp.pem" "PEM file of a certificate to show to its own host and trusted_realms.";
    client_key = setting types.str "/run/credentials/registry-cache.service/corp.key" "PEM file of its key. Default: it is in client_cert.";
    proxy = setting types.str "http://proxy.corp:3128" "Forward proxy for it and whatever it leads to, or direct. Default: the standard variables.";
    request_timeout = setting duration "25s" "The longest a client waits for the first byte of what is not cached.";
    prefetch = setting types.bool false "Whether its layers are fetched before a running pull asks for them. Default: true.";
    ca_file = setting types.str "/etc/ssl/internal-ca.pem" "PEM file of certificate authorities to trust for it beside the system's.";
    trusted_realms = setting (types.listOf types.str) [ "auth.example" ] "Hosts that may be sent its credential beside its own host and domain.";
    private_hosts = setting (types.listOf types.str) [ "blobs.internal" ] "Hosts on private addresses that it may redirect to.";
    anonymous_fallback = setting types.bool true "Whether to go on without the account when it rejects the credential. Default: false.";
    repositories = setting (types.listOf types.str) [ "team-*/**" ] "Only these of its repositories. Default: all.";
    tag_ttl = setting duration "30d" "How long its tags are served without asking again.";
    keep_deleted_tags = setting types.bool true "Whether to keep serving a tag that it has deleted or made private.";
    connect_timeout = setting duration "5s" "For the connection to it, TLS included.";
    read_timeout = setting duration "15s" "A read from it that stalls this long counts as broken.";
    stale_timeout = setting duration "2500ms" "How long it may take to confirm an expired tag before the stale one is served.";
    rate_limit_wait = setting duration "15s" "The longest an uncached pull waits for its rate limit to pass.";
    negative_ttl = setting duration "10s" "How long its no is answered from memory; 0: never.";
    retries = setting types.ints.unsigned 5 "How often a broken transfer from it is taken up again.";
    max_flights = setting types.ints.positive 32 "Blobs fetched from it at the same time.";
    blob_connections = setting types.ints.positive 4 "Connections for one large blob of it.";
    access = setting (types.enum [ "forward" ]) "forward" "forward: it decides itself who may pull, by each client's own login. Default: rules decide.";
    forward_allow = setting duration "5m" "How long it is not asked again about a login that it has let in. Default: 5m.";
    forward_stale = setting duration "1h" "How long after its last yes a login counts while it is away; 0: forward_allow. Default: 1h.";
  };

  prune = {
    free_below = setting types.str "15%" "Prune only when less than this is free where Docker keeps its data. Default: 15%.";
    free_target = setting types.str "25%" "Stop pruning as soon as this much is free. Default: free_below plus 5 % of the filesystem.";
    min_age = setting duration "7d" "A dangling image younger than this on this host stays. Default: 7d.";
    keep = setting (types.listOf types.str) [ "postgres:*" ] "Images that are never pruned: name patterns or digests.";
    include_tagged = setting types.bool true "Whether tagged images that nothing uses go too. Default: false.";
    tagged_min_age = setting duration "30d" "A tagged image used within this time stays. Default: 30d.";
    include_build_cache = setting types.bool true "Whether build cache that is not in use goes too. Default: false.";
    build_cache_min_age = setting duration "30d" "Build cache used within this time stays. Default: 30d.";
    min_container_age = setting duration "5m" "A container younger than this counts as a run under way; 0 turns this off. Default: 5m.";
    lock_file = mkOption {
      type = types.str;
      default = "/run/lock/registry-cache-run.lock";
      description = "The run lock, made at boot: shared by runs, exclusive for the prune.";
    };
    lock_wait = setting duration "10m" "The longest that guard waits for the run lock; then it says who holds it, and ends. Default: 10m.";
    lock_group = setting types.str "docker" "Only this group's users may take the run lock. Default: everybody.";
    docker_host = setting types.str "unix:///run/user/1000/docker.sock" "The Docker Engine to talk to. Default: this host's.";
    data_root = setting types.str "/var/lib/docker" "Watch the free space of this directory's filesystem. Default: what the engine says.";
  };
}
