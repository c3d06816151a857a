# A STUB of nixpkgs' lib, written for the tests: just enough of its functions and of its module system to evaluate our
# module where no nixpkgs is to be had. It checks types and refuses unknown options; it is no measure of the real thing.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    elem
    elemAt
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    stringLength
    substring
    toJSON
    zipAttrsWith
    ;

  typeOf = value: if isAttrs value then value._type or "" else "";
  wrap = _type: attrs: attrs // { inherit _type; };
  mkIf = condition: content: wrap "if" { inherit condition content; };
  mkMerge = contents: wrap "merge" { inherit contents; };
  mkOverride = priority: content: wrap "override" { inherit priority content; };
  mkOrder = order: content: wrap "order" { inherit order content; };

  # A definition as [ { value, priority, order } ]: conditions that do not hold are gone.
  discharge =
    definition:
    {
      "if" = if definition.condition then discharge definition.content else [ ];
      merge = concatMap discharge definition.contents;
      override = map (d: d // { inherit (definition) priority; }) (discharge definition.content);
      order = map (d: d // { inherit (definition) order; }) (discharge definition.content);
      "" = [
        {
          value = definition;
          priority = 100;
          order = 1000;
        }
      ];
    }
    .${typeOf definition};

  # What is around a set of definitions goes around each of them; the conditions are not looked at yet.
  pushDown =
    definition:
    let
      around = f: map (mapAttrs (_: f)) (pushDown definition.content);
    in
    {
      "if" = around (mkIf definition.condition);
      merge = concatMap pushDown definition.contents;
      override = around (mkOverride definition.priority);
      order = around (mkOrder definition.order);
      "" = [ definition ];
    }
    .${typeOf definition};

  # The values that count: those of the strongest priority, in their order.
  values =
    definitions:
    let
      found = concatMap discharge definitions;
      strongest = foldl' (least: d: if d.priority < least then d.priority else least) 9999 found;
    in
    map (d: d.value) (builtins.sort (a: b: a.order < b.order) (filter (d: d.priority == strongest) found));

  mergeAnything =
    where: found:
    if all (value: isAttrs value && !(value ? outPath)) found then
      mergeAttrs where found
    else if all isList found then
      concatLists found
    else if all (value: value == head found) found then
      head found
    else
      throw "${where}: conflicting definitions: ${toJSON found}";
  mergeAttrs =
    where: found:
    let
      each = zipAttrsWith (_: definitions: values definitions) found;
    in
    listToAttrs (
      concatMap (
        name:
        if each.${name} == [ ] then
          [ ]
        else
          [
            {
              inherit name;
              value = mergeAnything "${where}.${name}" each.${name};
            }
          ]
      ) (attrNames each)
    );

  type = name: check: {
    inherit name check;
    merge = mergeAnything;
  };
  isOption = value: typeOf value == "option";

  evalOption =
    where: option: definitions:
    let
      found = values definitions;
      wrong = filter (value: !option.type.check value) found;
      merged =
        if wrong != [ ] then
          throw "${where}: ${toJSON wrong} is not of type ${option.type.name}"
        else if found == [ ] && !(option.type ? submodule) then
          option.default or (throw "${where}: is used but not defined")
        else
          option.type.merge where found;
    in
    (option.apply or (value: value)) merged;

  evalTree =
    where: options: freeform: definitions:
    let
      sets = concatMap pushDown definitions;
      named = name: map (set: set.${name}) (filter (set: set ? ${name}) sets);
      unknown = concatMap (set: attrNames (removeAttrs set (attrNames options))) sets;
      declared = mapAttrs (
        name: option:
        if isOption option then
          evalOption "${where}${name}" option (named name)
        else
          evalTree "${where}${name}." option null (named name)
      ) options;
    in
    if unknown != [ ] && freeform == null then
      throw "${where}${head unknown}: no such option"
    else
      mergeAttrs where (map (set: removeAttrs set (attrNames options)) sets) // declared;

  mergeOptions =
    sets: zipAttrsWith (_: found: if length found == 1 || isOption (head found) then head found else mergeOptions found) sets;
in
rec {
  inherit
    any
    attrNames
    concatMap
    elem
    filter
    mapAttrs
    mkIf
    mkMerge
    mkOverride
    ;
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkBefore = mkOrder 500;
  mkOption = wrap "option";
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  literalExpression = text: wrap "literalExpression" { inherit text; };

  concatStringsSep = builtins.concatStringsSep;
  filterAttrs =
    keep: set: listToAttrs (map (name: { inherit name; value = set.${name}; }) (filter (name: keep name set.${name}) (attrNames set)));
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  last = list: elemAt list (length list - 1);
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  optional = condition: value: if condition then [ value ] else [ ];
  optionalAttrs = condition: set: if condition then set else { };
  removePrefix = prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
  removeSuffix =
    suffix: text:
    let
      kept = stringLength text - stringLength suffix;
    in
    if substring kept (-1) text == suffix then substring 0 kept text else text;
  splitString = separator: text: filter isString (builtins.split separator text);
  toInt = text: builtins.fromJSON text;
  versionAtLeast = a: b: builtins.compareVersions a b >= 0;

  types = rec {
    anything = type "anything" (_: true);
    bool = type "boolean" isBool;
    str = type "string" isString;
    path = type "absolute path" (value: isPath value || (isString value && substring 0 1 value == "/"));
    package = type "package" (value: value ? outPath);
    strMatching = pattern: type "string matching ${pattern}" (value: isString value && match pattern value != null);
    enum = allowed: type "one of ${toJSON allowed}" (value: elem value allowed);
    ints = {
      unsigned = type "unsigned integer" (value: isInt value && value >= 0);
      positive = type "positive integer" (value: isInt value && value > 0);
    };
    nullOr = inner: type "null or ${inner.name}" (value: value == null || inner.check value);
    either = a: b: type "${a.name} or ${b.name}" (value: a.check value || b.check value);
    listOf = inner: type "list of ${inner.name}" (value: isList value && all inner.check value);
    attrs = type "attribute set" isAttrs;
    attrsOf =
      inner:
      type "attribute set of ${inner.name}" (value: isAttrs value && all (name: inner.check value.${name}) (attrNames value))
      // {
        merge = where: found: mapAttrs (name: inner.merge "${where}.${name}") (zipAttrsWith (_: each: each) found);
      };
    submodule =
      {
        options,
        freeformType ? null,
      }:
      type "submodule" isAttrs
      // {
        submodule = options;
        merge = where: found: evalTree "${where}." options freeformType found;
      };
  };

  # Returns { options, config }. Arguments of the modules: config, lib and what is in *args*.
  evalModules =
    { modules, args }:
    let
      load =
        module:
        let
          read = if isPath module then import module else module;
          found = if isFunction read then read (args // { inherit config; }) else read;
        in
        if found ? options || found ? config then
          {
            options = found.options or { };
            config = found.config or { };
          }
        else
          {
            options = { };
            config = found;
          };
      loaded = map load modules;
      options = mergeOptions (map (module: module.options) loaded);
      config = evalTree "" options null (map (module: module.config) loaded);
    in
    {
      inherit options config;
    };
}
