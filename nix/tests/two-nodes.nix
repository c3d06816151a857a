# Two machines: a Docker Hub look-alike with its token service, and a docker host with the cache and the prune.
# The look-alike speaks to loopback only; its ports are carried to the host's own loopback, certificates and all.
{ source }:
{ lib, ... }:

let
  ports = {
    registry = {
      address = "127.0.0.1";
      port = 7443;
    };
    token = {
      address = "127.0.0.1";
      port = 7444;
    };
    cdn = {
      address = "127.0.0.2";
      port = 7445;
    };
  };
  carry =
    pkgs: from: to:
    lib.mapAttrs' (
      name: _:
      lib.nameValuePair "carry-${name}" {
        wantedBy = [ "multi-user.target" ];
        serviceConfig.Restart = "always";
        script = "exec ${lib.getExe pkgs.socat} TCP-LISTEN:${from name},fork,reuseaddr TCP:${to name}";
      }
    ) ports;
  outer = name: toString (ports.${name}.port + 1000);
  inner = name: "${ports.${name}.address}:${toString ports.${name}.port}";
in
{
  name = "registry-cache";

  nodes.hub =
    { pkgs, ... }:
    let
      # Debian's name for the program.
      registry = pkgs.writeShellScriptBin "docker-registry" ''exec ${pkgs.docker-distribution}/bin/registry "$@"'';
      python = pkgs.python3.withPackages (ps: [
        ps.aiohttp
        ps.httpx
        ps.trustme
      ]);
    in
    {
      networking.firewall.enable = false;
      environment.systemPackages = [ pkgs.curl ];
      systemd.services = carry pkgs outer inner // {
        hub = {
          wantedBy = [ "multi-user.target" ];
          path = [
            registry
            python
          ];
          serviceConfig.WorkingDirectory = source;
          serviceConfig.StateDirectory = "hub";
          script = ''
            exec python -m tests.hub --registry-port 7443 --token-port 7444 --cdn-port 7445 --control-port 7446 \
              --username ci --pat look-alike --state-dir /var/lib/hub
          '';
        };
      };
    };

  nodes.host =
    { pkgs, ... }:
    {
      imports = [ ../modules/registry-cache.nix ];
      environment.systemPackages = [
        pkgs.curl
        pkgs.jq
      ];
      systemd.services = carry pkgs (name: "${toString ports.${name}.port},bind=${ports.${name}.address}") (
        name: "hub:${outer name}"
      );
      # Stands in for a secret that sops-nix or agenix would lay down.
      systemd.tmpfiles.rules = [ "f /run/keys/dockerhub 0400 root root - look-alike" ];
      virtualisation.diskSize = 4096;
      virtualisation.docker.enable = true;
      services.registry-cache = {
        enable = true;
        username = "ci";
        passwordFile = "/run/keys/dockerhub";
        docker.enable = true;
        settings = {
          upstream = "https://127.0.0.1:7443";
          ca_file = "/etc/hub-ca.pem";
          min_free = 0;
        };
        prune.enable = true;
      };
      # The look-alike's authority is made when it starts: the test copies it here.
      environment.etc."hub-ca.pem" = {
        text = "";
        mode = "0644";
      };
    };

  testScript = ''
    start_all()
    hub.wait_for_open_port(7446)
    hub.succeed(
      "curl --fail -X POST http://127.0.0.1:7446/_hub/images"
      " -d '{\"make\": \"image\", \"repository\": \"library/demo\", \"tag\": \"1\"}'"
    )
    authority = hub.succeed("cat /var/lib/hub/ca.pem")
    host.wait_for_unit("multi-user.target")
    host.succeed(f"cat >/etc/hub-ca.pem <<'EOF'\n{authority}\nEOF")
    host.succeed("systemctl restart registry-cache.service")
    host.wait_for_unit("docker.service")

    with subtest("docker pulls through the cache, the second time without upstream"):
        host.succeed("docker pull demo:1", "docker rmi demo:1")
        hub.succeed("systemctl stop hub.service")
        host.succeed("docker pull demo:1")
        stats = "curl --fail --silent http://127.0.0.1:5000/_stats"
        assert int(host.succeed(f"{stats} | jq .requests.hit")) > 0

    with subtest("the content outlives a restart, and the token is nowhere to be read"):
        host.succeed("systemctl restart registry-cache.service", "docker rmi demo:1", "docker pull demo:1")
        host.fail("grep --recursive look-alike /var/cache/private/registry-cache")

    with subtest("the prune runs in its sandbox"):
        host.succeed("systemctl start registry-cache-prune.service")
        host.succeed("systemctl list-timers | grep registry-cache-prune")
  '';
}
