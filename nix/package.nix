# The program, without flakes: pkgs.callPackage ./nix/package.nix { }
{
  lib,
  stdenv,
  installShellFiles,
  python3Packages,
}:

let
  project = (lib.importTOML ../pyproject.toml).project;
  program = builtins.readFile ../proxy/registry_cache/__init__.py;
in
python3Packages.buildPythonApplication {
  pname = project.name;
  version = builtins.head (builtins.match ".*\n__version__ = \"([^\"]+)\".*" program);
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      # All of it but byte code: the page and the words that Tab offers are no Python.
      (lib.fileset.fileFilter (file: !file.hasExt "pyc") ../proxy)
      ../packaging/man
      ../pyproject.toml
      ../README.md
      ../LICENSE
    ];
  };

  build-system = [ python3Packages.hatchling ];
  nativeBuildInputs = [ installShellFiles ];

  # One source: the names in pyproject.toml. nixpkgs decides about the versions.
  dependencies = map (
    requirement: python3Packages.${builtins.head (builtins.match "([A-Za-z0-9_-]+).*" requirement)}
  ) (project.dependencies ++ project.optional-dependencies.fleet);
  pythonRelaxDeps = true;

  # Where what was built cannot run (cross-compiling), there is no completion.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    installShellCompletion --cmd registry-cache \
      --bash <($out/bin/registry-cache completion bash) \
      --zsh <($out/bin/registry-cache completion zsh) \
      --fish <($out/bin/registry-cache completion fish)
  '';

  pythonImportsCheck = [
    "registry_cache.assembly.proxy"
    "registry_cache.cli.prune"
    "registry_cache.cli.serve"
  ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "registry-cache";
    platforms = lib.platforms.linux;
  };
}
