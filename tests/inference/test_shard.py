"""How inputs are dealt: each once, in whole batches, and the same in every process."""

from pathlib import Path

import pytest

from van_classification_tensorflow.inference.shard import Shard, digest_of, turns


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard(0, 1)), ("3/16", Shard(3, 16))])
def test_what_is_a_shard(text, shard):
    assert Shard.parse(text) == shard
    assert str(shard) == text
    assert Shard.parse(shard) is shard


@pytest.mark.parametrize(
    "text", ["4/4", "0/0", "-1/4", "1", "1/", "/4", "1/4 ", "1/4/4", "a/4", "1/100000", "٣/4", 1]
)
def test_what_is_none(text):
    with pytest.raises(ValueError, match=r"`shard` must be I/N, I from 0 to N - 1 .*Received: "):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("block", [1, 4, 32])
@pytest.mark.parametrize("total", [1, 4, 29, 32])
def test_taken_in_turns_the_shares_are_the_inputs(total, block, count):
    inputs = list(range(total))
    shares = [Shard(number, count).of(inputs, block) for number in range(count)]
    for share in shares:  # whole batches of one process: the first of each begins one
        batches = [share[start : start + block] for start in range(0, len(share), block)]
        assert all(batch == inputs[batch[0] : batch[0] + block] for batch in batches)
        assert all(batch[0] % block == 0 for batch in batches)
    rest = [iter(share) for share in shares]
    merged = [next(rest[n]) for n, size in turns(total, count, block) for _ in range(size)]
    assert merged == inputs
    assert all(next(one, None) is None for one in rest)


def test_the_digest_is_of_the_names_their_order_and_how_they_are_dealt():
    found = [
        digest_of(names, count, block)
        for names, count, block in (
            (["a", "b"], 2, 4),
            (["b", "a"], 2, 4),
            (["a", "b", "b"], 2, 4),
            (["ab"], 2, 4),
            (["a", "b"], 3, 4),
            (["a", "b"], 2, 5),
            (["a", "\udce4"], 2, 4),  # a name that is no text
        )
    ]
    assert len(set(found)) == len(found)
    assert digest_of(iter(["a", "b"]), 2, 4) == found[0]


def test_a_part_lies_beside_its_output():
    assert Shard(2, 12).part_of(Path("d/x.csv")) == Path("d/x.csv.2-of-12.part")
