"""Weights reach another process bit for bit, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgpack
import pytest
import torch

from nemo_mtdrive.transfer.segments import RunFolder, TransferError
from nemo_mtdrive.transfer.weights import WeightError, WeightPiece, WeightPublisher, WeightReader

from .conftest import RUN
from .processes import finish, start_with_answer


def make_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every dtype and odd shapes, one not contiguous."""
    torch.manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(7, 5),
        "lm_head.weight": torch.randn(5, 7).T,
        "visual.blocks.0.norm1.weight": torch.randn(3).to(torch.bfloat16),
        "half": torch.randn(2, 3).to(torch.float16),
        "double": torch.tensor([float("nan"), -0.0, 5e-324], dtype=torch.float64),
        "count": torch.tensor(2**62),
        "empty": torch.empty(0, 4),
    }


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.dtype, left.shape) == (right.dtype, right.shape) and torch.equal(
        left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8)
    )


def publisher(folder: RunFolder, keep: int = 2) -> WeightPublisher:
    return WeightPublisher(folder, writes=True, keep=keep)


def read_elsewhere(pipe: Connection, root: Path) -> None:
    """An engine: report each version asked for as (version, {name: bits}), then write to a view."""
    with RunFolder(root, RUN) as folder:
        reader = WeightReader(folder)
        while (wanted := pipe.recv()) != "stop":
            version, tensors = reader.read(wanted)
            bits = {name: bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()) for name, t in tensors.items()}
            pipe.send((version, bits))
            tensors["count"].zero_()


def test_another_process_reads_the_same_bits(run_folder: RunFolder, shm_root: Path) -> None:
    process, pipe = start_with_answer(read_elsewhere, shm_root)
    writer = publisher(run_folder)
    for version in range(2):
        weights = make_weights(version)
        assert writer.publish(version, iter(weights.items())) > 0
        for wanted in (None, version):  # the second read would see what the first has written to its view
            pipe.send(wanted)
            got_version, bits = pipe.recv()
            assert got_version == version and list(bits) == list(weights)
            for name, tensor in weights.items():
                assert bits[name] == bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()), name
    pipe.send("stop")
    finish(process)


def test_dtypes_and_shapes_come_back(run_folder: RunFolder) -> None:
    publisher(run_folder).publish(3, make_weights().items())
    version, tensors = WeightReader(run_folder).read()
    assert version == 3
    assert all(same_bits(tensors[name], tensor) for name, tensor in make_weights().items())


def test_old_versions_go_and_a_mapped_one_stays_readable(run_folder: RunFolder) -> None:
    writer, reader = publisher(run_folder, keep=2), WeightReader(run_folder)
    assert reader.latest() is None
    writer.publish(0, make_weights(0).items())
    _, oldest = reader.read(0)
    for version in (1, 2, 10):
        writer.publish(version, make_weights(version).items())
    assert reader.latest() == 10
    assert sorted(path.name for path in (run_folder.path / "weights").iterdir()) == ["10", "2"]
    assert all(same_bits(oldest[name], tensor) for name, tensor in make_weights(0).items())
    with pytest.raises(WeightError, match=r"weights version 1 is not in .*; there: \[2, 10\]"):
        reader.read(1)


def test_ranks_that_do_not_write_walk_the_export_to_its_end(run_folder: RunFolder) -> None:
    walked = []

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in make_weights().items():
            walked.append(name)
            yield name, tensor

    assert WeightPublisher(run_folder, writes=False, keep=1).publish(0, export()) == 0
    assert walked == list(make_weights()) and WeightReader(run_folder).latest() is None


def test_a_failed_export_leaves_nothing(run_folder: RunFolder) -> None:
    def export() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(3)
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        publisher(run_folder).publish(0, export())
    assert list((run_folder.path / "weights").iterdir()) == []
    assert publisher(run_folder).publish(0, make_weights().items()) > 0


@pytest.mark.parametrize(
    ("weights", "problem"),
    [([("a", torch.zeros(1)), ("a", torch.zeros(1))], "weight a came twice"),
     ([("a", torch.zeros(1, dtype=torch.complex64))], "weight a has dtype complex64")],
)
def test_what_cannot_be_published_is_named(run_folder: RunFolder, weights: list, problem: str) -> None:
    with pytest.raises(WeightError, match=problem):
        publisher(run_folder).publish(0, weights)


def test_a_version_is_published_once(run_folder: RunFolder) -> None:
    publisher(run_folder).publish(0, [])
    with pytest.raises(WeightError, match="version 0 is published already"):
        publisher(run_folder).publish(0, [])


def test_a_bucket_at_a_time_and_none_larger_than_asked(run_folder: RunFolder) -> None:
    weights = {f"w{index}": torch.full((size,), float(index)) for index, size in enumerate((300, 500, 200, 0, 2000, 10, 0))}
    WeightPublisher(run_folder, writes=True, keep=1, bucket_bytes=4000).publish(0, weights.items())
    reader = WeightReader(run_folder)
    found = list(reader.buckets())
    assert [[name for name, _ in bucket] for bucket in found] == [["w0", "w1"], ["w2", "w3"], ["w4"], ["w5", "w6"]]
    for bucket in found:
        for name, tensor in bucket:
            assert same_bits(tensor, weights[name]), name
    assert [name for name, _ in reader.iterate(0)] == list(weights) == list(reader.read()[1])


def test_a_bucket_is_unmapped_when_it_is_let_go(run_folder: RunFolder) -> None:
    megabyte = 1 << 20
    weights = [(f"w{index}", torch.zeros(megabyte // 4)) for index in range(8)]
    WeightPublisher(run_folder, writes=True, keep=1, bucket_bytes=2 * megabyte).publish(0, weights)

    def mapped() -> int:
        return sum(line.endswith("/weights/0/data\n") for line in Path("/proc/self/maps").open())

    most = 0
    for _, tensor in WeightReader(run_folder).iterate():
        most = max(most, mapped())
        assert tensor.sum() == 0
    del tensor
    assert most == 1 and mapped() == 0


def test_pieces_make_whole_weights(run_folder: RunFolder) -> None:
    whole = torch.arange(24.0).view(6, 4)
    pieces = [WeightPiece("a", (6, 4), start * 4, whole[start:start + 2]) for start in (0, 2, 4)]
    publisher(run_folder).publish(0, [("before", torch.ones(3)), *pieces, ("after", torch.zeros(2))])
    found = dict(WeightReader(run_folder).iterate())
    assert torch.equal(found["a"], whole) and torch.equal(found["before"], torch.ones(3))
    for wrong in (pieces[:2], pieces[1:], [pieces[0], pieces[2]], [*pieces, pieces[1]], [pieces[0], *pieces]):
        with pytest.raises(WeightError, match="weight a"):
            publisher(run_folder).publish(1, [*wrong, ("after", torch.zeros(2))])
    assert WeightReader(run_folder).latest() == 0


def test_corruption_is_found(run_folder: RunFolder) -> None:
    publisher(run_folder).publish(0, make_weights().items())
    data = run_folder.path / "weights" / "0" / "data"
    broken = bytearray(data.read_bytes())
    broken[3] ^= 1
    data.write_bytes(broken)
    with pytest.raises(WeightError, match=r"weight model.embed_tokens.weight is corrupt"):
        WeightReader(run_folder).read()
    WeightReader(run_folder).read(verify=False)
    data.write_bytes(broken[:-64])
    with pytest.raises(WeightError, match="the manifest says version 0 of"):
        WeightReader(run_folder).read()


@pytest.mark.parametrize(
    "change",
    [{"format": 1}, {"buckets": [[0, 4096]]}, {"buckets": [3]}, {"extra": 1},
     {"tensors": [["a", "float32", [1000], 0, 4000, 0]]},
     {"tensors": [["a", "object", [1], 0, 4, 0]]}, {"tensors": [["a", "float32", [2], -8, 8, 0]]}, {"tensors": [7]}],
)
def test_a_manifest_that_does_not_fit_is_refused(run_folder: RunFolder, change: dict) -> None:
    publisher(run_folder).publish(0, [("a", torch.zeros(4))])
    manifest = run_folder.path / "weights" / "0" / "manifest.msgpack"
    manifest.write_bytes(msgpack.packb(msgpack.unpackb(manifest.read_bytes()) | change))
    with pytest.raises(TransferError):
        WeightReader(run_folder).read()
    manifest.write_bytes(b"\xc1noise")
    with pytest.raises(WeightError, match="not a weight manifest"):
        WeightReader(run_folder).read()
