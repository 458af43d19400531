"""Tensors as protobuf: typed and raw mean the same, in the order of bytes that the protocol names."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from daemon.serving.messages import ask_of
from daemon.serving.refusals import Malformed
from policies.terms import Datatype, TensorSpec

TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [-0.5, 1e30]),
    "FP64": ("fp64_contents", [-0.5, 1e300]),
}
OUT_OF_RANGE = {"UINT8": 256, "UINT16": 65536, "INT8": -129, "INT16": 32768, "FP32": np.nan, "FP64": np.inf}


def asked(datatype: str, raw: bytes | None = None, **contents):
    spec = TensorSpec(name="x", datatype=Datatype(datatype), shape=(-1, 2))
    given = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[1, 2])
    if contents:
        given.contents.MergeFrom(pb.InferTensorContents(**contents))
    made = pb.ModelInferRequest(inputs=[given], raw_input_contents=[] if raw is None else [raw])
    return ask_of(made, spec, 4, lambda: "new", "", 1.0)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_and_raw_contents_mean_the_same(datatype):
    field, values = TYPED[datatype]
    typed = asked(datatype, **{field: values})
    assert typed.x.dtype.byteorder in "|<="
    assert typed.x.tolist() == [np.asarray(values, typed.x.dtype).tolist()]
    same = asked(datatype, typed.x.tobytes())
    assert (same.x.dtype, same.x.tobytes()) == (typed.x.dtype, typed.x.tobytes())
    assert (typed.id, typed.key, typed.group, typed.timeout_s) == ("new", "new", "new", 1.0)
    if datatype in OUT_OF_RANGE:
        with pytest.raises(Malformed):
            asked(datatype, **{field: [values[0], OUT_OF_RANGE[datatype]]})


def test_half_precision_comes_raw_alone():
    assert asked("FP16", np.array([0.5, -2], "<f2").tobytes()).x.tolist() == [[0.5, -2.0]]
    with pytest.raises(Malformed, match="raw_input_contents"):
        asked("FP16", fp32_contents=[0.5, -2.0])


def test_raw_contents_are_little_endian_by_hand():
    # 1.0 and -2.0 as IEEE 754 says, written down and not made by numpy.
    assert asked("FP32", bytes.fromhex("0000803f 000000c0")).x.tolist() == [[1.0, -2.0]]
    assert asked("UINT16", bytes.fromhex("0100 0001")).x.tolist() == [[1, 256]]
    # Negative control: the other order is another number, not an error that would hide it.
    assert asked("UINT16", bytes.fromhex("0001 0100")).x.tolist() == [[256, 1]]
    with pytest.raises(Malformed, match="NaN or infinity"):
        asked("FP32", bytes.fromhex("0000807f 00000000"))
