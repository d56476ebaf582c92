from __future__ import annotations

import importlib
from typing import Any

import torch

from tests.support.ranks import run_ranks

CUDA = torch.device("cuda", 0)


def answered(question: str) -> Any:
    """The result of `question`, a function of this file, in a process with the replacements installed."""
    from megatron_dsmath.parallel import cpu

    cpu.install()
    cpu.install()  # the second call does nothing
    return globals()[question]()


def ask(question: Any) -> Any:
    (answer,) = run_ranks(1, answered, question.__name__)
    return answer


def tensors_made_on_cuda() -> list[str]:
    one = torch.ones(2)
    made = [
        torch.empty(2, device="cuda"),
        torch.zeros(2, device="cuda:3"),
        torch.tensor([1.0], device=CUDA),
        torch.arange(3, device=torch.cuda.current_device()),
        one.new_empty(2, device="cuda"),
        torch.empty_like(one, device=CUDA),
        one.cuda(),
        one.cuda(0, non_blocking=True),
        one.to("cuda"),
        one.to(CUDA, torch.float64),
        one.to(device="cuda", dtype=torch.bfloat16),
    ]
    return [f"{tensor.device} {tensor.dtype}".replace("torch.", "") for tensor in made]


def test_cuda_tensors_are_created_on_the_cpu() -> None:
    ours = ask(tensors_made_on_cuda)
    assert ours == ["cpu float32"] * 3 + ["cpu int64"] + ["cpu float32"] * 5 + ["cpu float64", "cpu bfloat16"]


def module_moved_to_cuda() -> tuple[str, str, bool]:
    linear = torch.nn.Linear(2, 2)
    weight = linear.weight
    return str(linear.cuda().weight.device), str(linear.to("cuda").weight.device), linear.weight is weight


def test_modules_stay_on_the_cpu() -> None:
    assert ask(module_moved_to_cuda) == ("cpu", "cpu", True)


def names_of_types() -> list[str]:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64]
    return [torch.ones(1, dtype=dtype).type() for dtype in dtypes] + [torch.ones(1).type(torch.float64).type()]


def test_a_tensors_type_is_the_name_that_megatron_compares() -> None:
    floats = ["torch.cuda.FloatTensor", "torch.cuda.HalfTensor", "torch.cuda.BFloat16Tensor"]
    assert ask(names_of_types) == [*floats, "torch.LongTensor", "torch.DoubleTensor"]


def drawn_from_the_cuda_state() -> list[list[float]]:
    from megatron.core.tensor_parallel import random

    def draw() -> list[float]:
        numbers: list[float] = torch.rand(3).tolist()
        return numbers

    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = draw()
    torch.cuda.set_rng_state(state)
    second = draw()
    random._set_cuda_rng_state(state)
    third = draw()
    random._set_cuda_rng_state(state)
    assert torch.equal(random._get_cuda_rng_state(), state)
    return [first, second, third]


def test_the_cuda_random_state_is_the_cpus() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5)).tolist()
    assert ask(drawn_from_the_cuda_state) == [expected] * 3


def waited_for_streams() -> str:
    torch.cuda.set_device(0)
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return "done"


def test_streams_have_nothing_to_wait_for() -> None:
    assert ask(waited_for_streams) == "done"


def results_of_calls_that_do_not_name_cuda() -> list[Any]:
    one = torch.arange(4.0)
    base = one.reshape(2, 2)
    return [
        torch.empty(2, device="meta").device.type,
        one.to("meta").device.type,
        one.to(torch.float64).dtype == torch.float64,
        one.to(base.double()).dtype == torch.float64,
        one.to("cpu") is one,
        (base @ base).tolist(),
        torch.cat([one, one], dim=0).sum().item(),
        torch.nn.functional.softmax(base, dim=1).sum().item(),
        torch.cuda.is_available(),
    ]


def test_calls_without_a_cuda_device_are_unchanged() -> None:
    assert ask(results_of_calls_that_do_not_name_cuda) == results_of_calls_that_do_not_name_cuda()


def torchs_compiler() -> bool:
    importlib.import_module("torch._dynamo")
    return bool(torch.compiler.is_compiling())


def test_torchs_compiler_can_still_be_imported() -> None:
    """torch's compiler refuses one function under two names."""
    assert ask(torchs_compiler) is False


def what_importing_the_room_changed() -> list[str]:
    import sys

    names = ["current_device", "synchronize", "set_device", "manual_seed", "get_rng_state", "current_stream"]
    before = {name: getattr(torch.cuda, name) for name in names} | {"compile": torch.compile}
    for name in ("topology", "transformer", "optimizer", "pipeline", "shards", "attention"):
        importlib.import_module(f"megatron_dsmath.parallel.{name}")
    changed = [name for name in names if getattr(torch.cuda, name) is not before[name]]
    changed += ["compile"] if torch.compile is not before["compile"] else []
    return changed + [name for name in sys.modules if name == "megatron_dsmath.parallel.cpu"]


def test_importing_parallel_does_not_install_the_replacements() -> None:
    assert run_ranks(1, what_importing_the_room_changed) == [[]]


def what_torch_says_by_itself() -> tuple[str, str]:
    if torch.cuda.is_available():
        return "CUDA is there", "torch.FloatTensor"
    try:
        return str(torch.ones(2).cuda().device), torch.ones(1).type()
    except (AssertionError, RuntimeError) as error:
        return str(error), torch.ones(1).type()


def test_without_the_replacements_torch_raises() -> None:
    """Without the replacements torch raises for the calls above."""
    ((refusal, type_name),) = run_ranks(1, what_torch_says_by_itself)
    assert "CUDA" in refusal
    assert type_name == "torch.FloatTensor"
