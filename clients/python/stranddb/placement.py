"""Where a key lives: its slot, by the hash that the server places keys with.

XXH3 with 64 bits, seed 0, as its public specification has it (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), for
inputs of any length, in plain Python: about ten microseconds for a usual key. Only a client that asked for redirects hashes
keys at all. Where the optional package ``xxhash`` is there, it is used instead.
"""

from __future__ import annotations

from struct import unpack_from
from typing import Callable, List

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
_MASK = 0xFFFFFFFFFFFFFFFF
_PRIME32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_PRIME64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_STRIPE = 64
_BLOCK_STRIPES = (len(_SECRET) - _STRIPE) // 8
_BLOCK = _BLOCK_STRIPES * _STRIPE


def _u64(data: bytes, at: int) -> int:
    return unpack_from("<Q", data, at)[0]


def _u32(data: bytes, at: int) -> int:
    return unpack_from("<I", data, at)[0]


def _folded(left: int, right: int) -> int:
    product = left * right
    return (product & _MASK) ^ (product >> 64)


def _avalanche(value: int) -> int:
    value ^= value >> 37
    value = value * 0x165667919E3779F9 & _MASK
    return value ^ value >> 32


def _avalanche_short(value: int) -> int:
    value ^= value >> 33
    value = value * _PRIME64[1] & _MASK
    value ^= value >> 29
    value = value * _PRIME64[2] & _MASK
    return value ^ value >> 32


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _mixed(data: bytes, at: int, secret: int) -> int:
    return _folded(_u64(data, at) ^ _u64(_SECRET, secret), _u64(data, at + 8) ^ _u64(_SECRET, secret + 8))


def _hash_to_16(data: bytes) -> int:
    length = len(data)
    if length > 8:
        low = _u64(data, 0) ^ _u64(_SECRET, 24) ^ _u64(_SECRET, 32)
        high = _u64(data, length - 8) ^ _u64(_SECRET, 40) ^ _u64(_SECRET, 48)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return _avalanche(length + swapped + high + _folded(low, high) & _MASK)
    if length >= 4:
        value = _u32(data, length - 4) + (_u32(data, 0) << 32) ^ _u64(_SECRET, 8) ^ _u64(_SECRET, 16)
        value ^= _rotated(value, 49) ^ _rotated(value, 24)
        value = value * 0x9FB21C651E98DF25 & _MASK
        value ^= (value >> 35) + length
        value = value * 0x9FB21C651E98DF25 & _MASK
        return value ^ value >> 28
    if length:
        value = data[0] << 16 | data[length >> 1] << 24 | data[-1] | length << 8
        return _avalanche_short(value ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4))
    return _avalanche_short(_u64(_SECRET, 56) ^ _u64(_SECRET, 64))


def _hash_to_240(data: bytes) -> int:
    length = len(data)
    value = length * _PRIME64[0]
    if length <= 128:
        for turn in range((length - 1) // 32, -1, -1):
            value += _mixed(data, turn * 16, turn * 32)
            value += _mixed(data, length - turn * 16 - 16, turn * 32 + 16)
        return _avalanche(value & _MASK)
    for turn in range(8):
        value += _mixed(data, turn * 16, turn * 16)
    value = _avalanche(value & _MASK)
    for turn in range(8, length // 16):
        value += _mixed(data, turn * 16, (turn - 8) * 16 + 3)
    value += _mixed(data, length - 16, 136 - 17)
    return _avalanche(value & _MASK)


def _accumulate(lanes: List[int], data: bytes, at: int, secret: int) -> None:
    words, keys = unpack_from("<8Q", data, at), unpack_from("<8Q", _SECRET, secret)
    for lane in range(8):
        keyed = words[lane] ^ keys[lane]
        lanes[lane ^ 1] = lanes[lane ^ 1] + words[lane] & _MASK
        lanes[lane] = lanes[lane] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & _MASK


def _hash_long(data: bytes) -> int:
    length = len(data)
    lanes = [_PRIME32[2], *_PRIME64[:4], _PRIME32[1], _PRIME64[4], _PRIME32[0]]
    blocks = (length - 1) // _BLOCK
    scramble = unpack_from("<8Q", _SECRET, len(_SECRET) - _STRIPE)
    for block in range(blocks):
        for stripe in range(_BLOCK_STRIPES):
            _accumulate(lanes, data, block * _BLOCK + stripe * _STRIPE, stripe * 8)
        for lane in range(8):
            value = lanes[lane] ^ lanes[lane] >> 47 ^ scramble[lane]
            lanes[lane] = value * _PRIME32[0] & _MASK
    for stripe in range((length - 1 - blocks * _BLOCK) // _STRIPE):
        _accumulate(lanes, data, blocks * _BLOCK + stripe * _STRIPE, stripe * 8)
    _accumulate(lanes, data, length - _STRIPE, len(_SECRET) - _STRIPE - 7)
    value = length * _PRIME64[0]
    keys = unpack_from("<8Q", _SECRET, 11)
    for lane in range(0, 8, 2):
        value += _folded(lanes[lane] ^ keys[lane], lanes[lane + 1] ^ keys[lane + 1])
    return _avalanche(value & _MASK)


def xxh3_64(data: bytes) -> int:
    """The hash of some bytes."""
    if len(data) <= 16:
        return _hash_to_16(data)
    return _hash_to_240(data) if len(data) <= 240 else _hash_long(data)


hash64: Callable[[bytes], int]
try:
    # Optional: faster, and the same.
    from xxhash import xxh3_64_intdigest as hash64
except ImportError:
    hash64 = xxh3_64


def slot_of(key: bytes, hashed: Callable[[bytes], int]) -> int:
    """The slot of a key: the upper 12 bits of the hash of its ``{tag}``, or of the whole key without one."""
    opened = key.find(b"{")
    closed = key.find(b"}", opened + 1) if opened >= 0 else -1
    return hashed(key[opened + 1:closed] if closed > opened + 1 else key) >> 52
