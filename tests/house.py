"""The house rules: functions from a module's source to what breaks the rule in it."""

import ast
import functools
import importlib
import inspect
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MAX_BODY = 60
# The folders of the package from the lowest floor up.
FOLDERS = (
    ("evaluate",),
    ("estimators",),
    ("optimizers",),
    ("journal",),
    ("run",),
    ("pool", "calibration", "federated"),
)
CORE = {"jax", "optax", "chex", "numpy", "radazo"}
SECTIONS = ["Args", "Attributes", "Returns", "Raises", "Cost", "Example", "References"]
ORDERS = (("key", "value_fn", "params", "state"), ("updates", "state", "params"))
BANNED = {
    *("lr", "step_size", "alpha", "eta", "beta1", "beta2", "beta_1", "beta_2"),
    *("mu", "nu", "sigma", "radius", "epsilon", "zeta", "perturbation_scale"),
    *("fun", "fn", "f", "loss", "loss_fn", "objective", "score", "fitness"),
    *("theta", "weights", "parameters", "x", "grads", "grad", "gradients"),
    *("q", "k", "K", "n", "n_samples", "num_samples", "population_size", "popsize"),
    *("u", "z", "noise", "perturbation", "rng", "rng_key", "seed", "random_state"),
}
AMBIGUOUS = {"value", "grad", "mu", "nu", "learning_rate"}  # For `optax.tree.get`.
MARKS = re.compile(
    r"#\s*(noqa|type:\s*ignore|pragma|pylint:|pyright:|mypy:|ruff:|fmt:)", re.IGNORECASE
)


class Module(NamedTuple):
    """A module under the rules, and the modules beside it."""

    name: str
    source: str
    package: dict[str, str]  # Source by name, of all modules with `__init__`.

    @property
    def tree(self):
        return parse(self.source)


@functools.cache
def parse(source):
    return ast.parse(source)


def read_package():
    """Every module of the package by its dotted name, `__init__` for the package."""
    folder = ROOT / "radazo"
    package = {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text(
            "utf-8"
        )
        for path in sorted(folder.rglob("*.py"))
    }
    return [Module(name, source, package) for name, source in package.items()]


def floor(name):
    """The floor of a module: that of its folder, 0 for a file that is in none."""
    folder = name.partition(".")[0]
    return next((i for i, row in enumerate(FOLDERS, 1) if folder in row), 0)


def public_module(name):
    """Whether users import from a module: a package, or a file outside of folders."""
    return name.endswith("__init__") or "." not in name


def exports(package):
    """Module by name that some public module has in its `__all__`."""
    found = {}
    for module, source in package.items():
        tree = parse(source)
        names = listed(tree)
        found |= {name: module for name in names if public_module(module)}
        found |= {
            alias.name: node.module.removeprefix("radazo.")
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and public_module(module)
            for alias in node.names
            if alias.name in names and (node.module or "").startswith("radazo.")
        }
    defined = {
        node.name: module
        for module, source in package.items()
        for node in parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    modules = {name.partition(".")[0] for name in package}
    return {
        name: defined.get(name, module)
        for name, module in found.items()
        if module != "__init__" or name not in modules
    }


def listed(tree):
    """The names in `__all__`, in their order."""
    return [name for names in lists(tree) for name in names]


def lists(tree):
    """The lists that make up `__all__`: `__all__ = [...]`, `__all__ += [...]`."""
    return [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AugAssign)
        and ast.unparse(getattr(node, "target", None) or node.targets[0]) == "__all__"
    ]


def imports(tree):
    """(package, name within radazo or None, statement) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                yield first, rest or None, node
        elif isinstance(node, ast.ImportFrom):
            first, _, rest = ("." * node.level + (node.module or "")).partition(".")
            for alias in node.names:
                yield first, rest or alias.name, node


def short(module):
    """The name by which other modules know it."""
    return module.name.rpartition(".")[2]


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def arguments(function):
    """All names, those that can be passed by position first."""
    args = function.args
    return [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]


def public(tree, kinds):
    return [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def fields(cls):
    return [n.target.id for n in cls.body if isinstance(n, ast.AnnAssign)]


def sections(docstring):
    """Text by section, in the order in which they stand; one text may be of several."""
    parts = re.split(r"^(\w+(?:, \w+)*):$", docstring, flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {name: text for names, text in pairs for name in names.split(", ")}


def imports_go_down(module):
    """A folder imports from itself and from the floors below it."""
    if module.name == "__init__":
        return []
    mine, folder = floor(module.name), module.name.partition(".")[0]
    within = [name for first, name, _ in imports(module.tree) if first == "radazo"]
    return [
        f"{x} is not below"
        for x in within
        if floor(x) > mine or (floor(x) == mine > 0 and x.partition(".")[0] != folder)
    ]


def imports_are_of_the_core_and_on_top(module):
    tree = module.tree
    return [
        f"line {node.lineno}: {first or 'relative'}"
        for first, _, node in imports(tree)
        if first not in CORE | sys.stdlib_module_names or node not in tree.body
    ]


def a_body_is_short(module):
    def length(function):
        first = function.body[ast.get_docstring(function) is not None :]
        return function.end_lineno - first[0].lineno + 1 if first else 0

    long = [f for f in functions(module.tree) if length(f) > MAX_BODY]
    return [f"{f.name}: {length(f)} lines" for f in long]


def nothing_is_asserted(module):
    nodes = [n for n in ast.walk(module.tree) if isinstance(n, ast.Assert)]
    return [f"line {node.lineno}" for node in nodes]


def no_key_is_made_of_a_constant(module):
    def name(call):
        return getattr(call.func, "attr", getattr(call.func, "id", ""))

    return [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call)
        and name(call) in ("key", "PRNGKey")
        and any(isinstance(arg, ast.Constant) for arg in call.args)
    ]


def nothing_is_silenced(module):
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    return [f"line {t.start[0]}: {t.string}" for t in comments if MARKS.match(t.string)]


def only_checks_raise(module):
    if module.name == "validation":
        return []
    nodes = [n for n in ast.walk(module.tree) if isinstance(n, ast.Raise)]
    # A private exception is control flow, and no message that a user reads.
    return [
        f"line {node.lineno}"
        for node in nodes
        if not re.match(r"_\w+\(", ast.unparse(node.exc or node))
    ]


def everything_public_says_what_it_is(module):
    nodes = [module.tree, *public(module.tree, ast.FunctionDef | ast.ClassDef)]
    return [
        getattr(node, "name", "the module")
        for node in nodes
        if not re.match(
            r".+[.:]$", (ast.get_docstring(node) or "").split("\n\n")[0], re.DOTALL
        )
        and not re.match(r"`.+`$", (ast.get_docstring(node) or ""))
    ]


def exported_docstrings_have_their_sections(module):
    broken = []
    for node in public(module.tree, ast.FunctionDef | ast.ClassDef):
        if exports(module.package).get(node.name) != module.name:
            continue
        text = ast.get_docstring(node) or ""
        made = None
        if node.decorator_list:  # The decorator may add arguments and sections.
            made = getattr(importlib.import_module(f"radazo.{module.name}"), node.name)
            text = inspect.getdoc(made) or ""
        found = sections(text)
        if isinstance(node, ast.ClassDef):
            named, section = fields(node), "Attributes"
            needed = {"Attributes"}
        else:
            named = [*inspect.signature(made).parameters] if made else arguments(node)
            section = "Args"
            needed = {"Args", "Returns", "Cost", "Example"}
            if re.search(r"\bvalidation\.|\b_check|raise ", ast.unparse(node.body[1:])):
                needed |= {"Raises"}
        head = text.split("\n")[0]
        broken += [f"{node.name}: no {x}" for x in needed - {*found}]
        broken += [
            f"{node.name}: {x} is not in {section}"
            for x in named
            if not re.search(rf"^  .*\b{x}\b.*:", found.get(section, ""), re.MULTILINE)
        ]
        if [*found] != [x for x in SECTIONS if x in found]:
            broken.append(f"{node.name}: sections {[*found]}")
        if not head.endswith("."):
            broken.append(f"{node.name}: its first line is no sentence")
        if "Example" in needed and ">>> " not in found.get("Example", ""):
            broken.append(f"{node.name}: its example is none")
    return broken


def exports_are_what_they_say(module):
    names = listed(module.tree)
    known = {
        a.asname or a.name for n in module.tree.body for a in getattr(n, "names", [])
    }
    known |= {n.name for n in public(module.tree, ast.FunctionDef | ast.ClassDef)}
    for node in module.tree.body:
        if isinstance(node, ast.Assign):
            known |= {x.id for x in node.targets if isinstance(x, ast.Name)}
    broken = [f"{name} is private" for name in names if name.startswith("_")]
    broken += [f"{name} is not there" for name in names if name not in known]
    broken += ["`__all__` is missing"] * (
        module.name.endswith("__init__") and not names
    )
    broken += ["a name is there twice"] * (len(names) != len({*names}))
    unsorted = any(part != sorted(part) for part in lists(module.tree))
    return broken + ["they are not sorted"] * unsorted


def public_names_are_used_elsewhere(module):
    if module.name == "__init__":
        return []
    names = {n.name for n in public(module.tree, ast.FunctionDef | ast.ClassDef)}
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = getattr(node, "targets", None) or [node.target]
            names |= {x.id for t in targets for x in ast.walk(t) if hasattr(x, "id")}
    others = "\n".join(s for name, s in module.package.items() if name != module.name)
    return [
        name
        for name in sorted(names)
        if not name.startswith("_")
        and exports(module.package).get(name) != module.name
        and not re.search(rf"\b{short(module)}\.{name}\b", others)
        and not re.search(rf"{module.name} import [^\n]*\b{name}\b", others)
        and not re.search(rf"\b{name}\b", ast.get_docstring(module.tree) or "")
        and not (name[0].isupper() and re.search(rf"[:>] {name}\b", module.source))
    ]


def nobody_uses_a_name_of_another_file_alone(module):
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[^_]", node.attr)
        and isinstance(node.value, ast.Name)
        and node.value.id in {name.rpartition(".")[2] for name in module.package}
    ]


def arguments_are_in_order(module):
    broken = []
    for function in functions(module.tree):
        names = arguments(function)
        order = ORDERS["updates" in names]
        known = [name for name in names if name in order]
        if known != [name for name in order if name in known]:
            broken.append(f"{function.name}({', '.join(known)})")
    return broken


def links_and_states_are_named_alike(module):
    links = {n.name for n in public(module.tree, ast.FunctionDef)}
    states = {n.name for n in public(module.tree, ast.ClassDef)}
    links = {name for name in links if name.startswith("scale_by_")}
    states = {name for name in states if name.startswith("ScaleBy")}
    wanted = {name.title().replace("_", "") + "State" for name in links}
    return sorted(states ^ wanted)


def one_word_stands_for_an_idea(module):
    return [
        f"{function.name}({name})"
        for function in public(module.tree, ast.FunctionDef)
        if exports(module.package).get(function.name) == module.name
        for name in arguments(function)
        if name in BANNED
    ]


def classes_are_tuples_or_protocols(module):
    return [
        cls.name
        for cls in public(module.tree, ast.ClassDef)
        if [ast.unparse(base) for base in cls.bases]
        not in (["NamedTuple"], ["Protocol"])
    ]


def states_are_not_mistaken_for_others(module):
    return [
        f"{cls.name}.{name}"
        for cls in public(module.tree, ast.ClassDef)
        if cls.name.endswith("State") and not cls.name.startswith("ScaleBy")
        for name in fields(cls)
        if name in AMBIGUOUS
    ]
