"""Try the cells: each stub, each solution. Run with PYTHONPATH=/work/wt/ex03."""
import ast, contextlib, io, math, os, re, sys, tempfile
os.environ["GPTCOURSE_PROGRESS"] = tempfile.mkdtemp()
sys.path[:0] = ["/work/wt"]
import torch, torch.nn.functional as F
from torch import nn
from ex03_cells import CELLS
from gptcourse.exercises import check, exercises, records
names = []
for (_, task_id, _, task), (_, code_id, tags, code), (_, sol_id, sol_tags, sol) in zip(*[iter(CELLS)] * 3):
    (tag,) = tags
    kind, name = tag.split(":")
    names.append(name)
    assert sol_tags == [f"solution:{name}"] and code_id == task_id + "-code" and sol_id == task_id + "-solution"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {"math": math, "torch": torch, "nn": nn, "F": F, "check": check})
    text = out.getvalue()
    line = text.strip().splitlines()[-1]
    want = f"To do: {name}. " if kind == "exercise" else f"Not yet: {name}. The mistake is still there"
    assert line.startswith(want), line
    assert not records.progress_file().exists(), "a stub is not a try"
    assert (kind == "mistake") is (".mend_" in name)
    (fence,) = re.findall(r"```python\n(.*?)```", sol, re.DOTALL)
    (function,) = re.findall(rf'check\("{name}", (\w+)\)', code)
    ns = {}
    exec(fence, ns)
    solved = io.StringIO()
    with contextlib.redirect_stdout(solved):
        assert check(name, ns[function]), name
        records.forget_progress()
    print(text, end="")
    # the rest of the cell, after the solution has replaced the stub
    if kind == "mistake":
        tree = ast.parse(code)
        rest = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == function)]
        ns2 = {"math": math, "torch": torch, "nn": nn, "F": F, "check": check, **ns}
        print("   mended:"); exec(compile(ast.Module(rest, []), name, "exec"), ns2); records.forget_progress()
assert names == [n for n in exercises() if n.startswith("tuning.")], names
assert len({c[1] for c in CELLS}) == len(CELLS)
print(len(CELLS), "cells")
