import numpy as np
import pytest
import torch

from fewfold.linalg.packing import pack_bits, packed_length, unpack_bits


def naive_pack(row, bits):
    stream = "".join(format(int(code), f"0{bits}b")[::-1] for code in row)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[start : start + 8][::-1], 2) for start in range(0, len(stream), 8)]


@pytest.mark.parametrize("bits", range(1, 17))
def test_round_trip_and_layout(bits):
    generator = np.random.default_rng(bits)
    for count in (1, 2, 3, 7, 8, 9, 31, 64, 100):
        codes = torch.from_numpy(generator.integers(0, 2**bits, (3, count)))
        codes[0, 0], codes[0, -1] = 2**bits - 1, 0
        packed = pack_bits(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.shape == (3, packed_length(count, bits))
        assert packed.tolist() == [naive_pack(row, bits) for row in codes]
        assert torch.equal(unpack_bits(packed, bits, count).to(torch.int64), codes)


def test_any_number_of_dimensions():
    codes = torch.randint(0, 8, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_bits(pack_bits(codes, 3), 3, 5), codes.to(torch.uint8))
    assert torch.equal(unpack_bits(pack_bits(codes[0, 0], 3), 3, 5), codes[0, 0].to(torch.uint8))
    assert pack_bits(codes[:, :, :0], 3).shape == (2, 3, 0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="shift signed codes first"):
        pack_bits(torch.tensor([-1, 2]), 4)
    with pytest.raises(ValueError, match="4 bits hold 0…15"):
        pack_bits(torch.tensor([16]), 4)
    with pytest.raises(ValueError, match="bits=17"):
        pack_bits(torch.tensor([1]), 17)
    with pytest.raises(ValueError, match="integer tensor"):
        pack_bits(torch.tensor([1.0]), 4)
    with pytest.raises(ValueError, match="last dimension of 2"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 4, 4)
