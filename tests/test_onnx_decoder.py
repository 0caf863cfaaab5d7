"""The generator "onnx": real ONNX files, compared with the same network in torch, and pages that do not fit them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.generators.factory import build_generator
from models.generators.onnx_decoder import Description, read_description
from rig.config.generators import OnnxGenerator
from stimuli.limits import frame_levels

PAGE = """\
input: z
latent_shape: [2, 3]
output: image
layout: nchw
colours: rgb
range: [-1, 1]
"""
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((6, 4 * 4 * 5)).astype(np.float32)
KERNELS = (RNG.standard_normal((5, 3, 8, 8)) * 0.4).astype(np.float32)


def write_model(
    path: Path, batch: str | int = "n", last: str = "Tanh", gain: float = 1, layout: str = "nchw", more: str = ""
) -> Path:
    """Write a decoder (batch, 2, 3) -> (batch, 3, 32, 32): a linear layer and one of deconvolution."""
    single = TensorProto.FLOAT
    nodes = [
        helper.make_node("Reshape", ["z", "flat"], ["code"]),
        helper.make_node("MatMul", ["code", "weights"], ["h"]),
        helper.make_node("Reshape", ["h", "grid"], ["coarse"]),
        helper.make_node("ConvTranspose", ["coarse", "kernels"], ["levels"], strides=[8, 8]),
        helper.make_node(last, ["levels"], ["bounded"]),
        helper.make_node("Mul", ["bounded", "gain"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["image"], perm=(0, 2, 3, 1) if layout == "nhwc" else (0, 1, 2, 3)),
    ]
    inputs = [helper.make_tensor_value_info("z", single, [batch, 2, 3])]
    if more:
        inputs.append(helper.make_tensor_value_info(more, single, [1]))
        nodes.append(helper.make_node("Identity", [more], ["unused"]))
    shape = [batch, 32, 32, 3] if layout == "nhwc" else [batch, 3, 32, 32]
    outputs = [helper.make_tensor_value_info("image", single, shape)]
    constants = {"flat": np.array([-1, 6]), "weights": WEIGHTS, "grid": np.array([-1, 5, 4, 4]), "kernels": KERNELS}
    constants["gain"] = np.array([gain], np.float32)
    graph = helper.make_graph(
        nodes, "decoder", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def settings(folder: Path, page: str = PAGE, contrast: float | None = None, **model: str | float) -> OnnxGenerator:
    path = write_model(folder / "decoder.onnx", **model)  # type: ignore[arg-type]
    (folder / "decoder.yaml").write_text(page)
    return OnnxGenerator(model=path, description=folder / "decoder.yaml", contrast=contrast)


def by_torch(codes: np.ndarray) -> np.ndarray:
    """Return what the network puts out (n, 3, 32, 32) before the last function, of codes (n, 6)."""
    coarse = (torch.from_numpy(codes) @ torch.from_numpy(WEIGHTS)).reshape(-1, 5, 4, 4)
    return torch.nn.functional.conv_transpose2d(coarse, torch.from_numpy(KERNELS), stride=8).numpy()


def test_frames_are_those_of_the_same_network_in_torch(tmp_path: Path) -> None:
    generator = build_generator(settings(tmp_path), 32, 32, 128)
    assert (generator.latent_shape, generator.latent_size, generator.differentiable) == ((2, 3), 6, False)
    codes = generator.start(8, np.random.default_rng(1))
    expected = (np.tanh(by_torch(codes)) + 1) * 127.5
    assert np.abs(generator.decode(codes) - expected.transpose(0, 2, 3, 1)).max() <= 0.51
    assert expected.std() > 20


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"layout: nchw": "layout: nhwc"}, {"layout": "nhwc"}),
        ({}, {"batch": 1}),
        ({"[-1, 1]": "[0, 255]\noffset: [127.5, 127.5, 127.5]"}, {"gain": 127.5}),
    ],
    ids=["channels last", "one code at a time", "mean picture subtracted"],
)
def test_other_layouts_batches_and_ranges_give_the_same_frames(
    tmp_path: Path, changes: dict[str, str], model: dict[str, str | float]
) -> None:
    plain = build_generator(settings(tmp_path), 32, 32, 128)
    other = tmp_path / "other"
    other.mkdir()
    page = PAGE
    for old, new in changes.items():
        page = page.replace(old, new)
    made = settings(other, page, **model)
    codes = plain.start(4, np.random.default_rng(1))
    difference = build_generator(made, 32, 32, 128).decode(codes).astype(int) - plain.decode(codes)
    assert np.abs(difference).max() <= 1


def test_blue_first_and_grey(tmp_path: Path) -> None:
    rgb = build_generator(settings(tmp_path), 32, 32, 128)
    codes = rgb.start(2, np.random.default_rng(1))
    frames = rgb.decode(codes)
    bgr = build_generator(settings(tmp_path, PAGE.replace("rgb", "bgr")), 32, 32, 128)
    assert np.array_equal(bgr.decode(codes), frames[..., ::-1])
    assert bgr.name != rgb.name
    with pytest.raises(ValueError, match=r"expected \[1, 1, side, side\]: correct layout or colours"):
        build_generator(settings(tmp_path, PAGE.replace("rgb", "grey")), 32, 32, 128)


def test_a_frame_depends_on_its_own_code_only_and_is_fitted_to_the_screen(tmp_path: Path) -> None:
    given = settings(tmp_path, contrast=0.25)
    generator = build_generator(given, 50, 50, 110)
    codes = generator.start(9, np.random.default_rng(2))
    together = generator.decode(codes)
    assert together.shape == (9, 50, 50, 3)
    assert np.array_equal(generator.decode(codes[[8, 0, 3]]), together[[8, 0, 3]])
    for frame in together:
        assert frame_levels(frame) == pytest.approx((110, 0.25), abs=0.5, rel=0.02)
    assert build_generator(given, 60, 60, 110).name != generator.name
    with pytest.raises(ValueError, match=r"takes \(n, 6\)"):
        generator.decode(codes[:, :5])


def test_a_prior_may_be_numbers_for_all_values_or_for_each(tmp_path: Path) -> None:
    page = PAGE + "prior: {mean: [0, 1, 2, 3, 4, 5], sd: 0.5}\n"
    prior = build_generator(settings(tmp_path, page), 32, 32, 128).prior
    codes = prior.sample(4000, np.random.default_rng(0))
    assert codes.mean(axis=0) == pytest.approx(np.arange(6), abs=0.05)
    assert codes.std(axis=0) == pytest.approx(0.5, abs=0.03)
    assert np.linalg.norm(codes, axis=1).mean() == pytest.approx(prior.norm, rel=0.02)
    given = build_generator(settings(tmp_path, PAGE + "prior: {norm: 7, rectified: true}\n"), 32, 32, 128).prior
    assert given.norm == 7
    assert given.sample(50, np.random.default_rng(0)).min() == 0


WRONG = {
    "input": ({"input: z": "input: code"}, {}, "input: the model has no input 'code'; it has z"),
    "output": ({"output: image": "output: picture"}, {}, "output: the model has no output 'picture'; it has image"),
    "other inputs": ({}, {"more": "noise"}, "the model also wants noise; export it with the code alone"),
    "shape": ({"[2, 3]": "[3, 2]"}, {}, r"latent_shape: \[3, 2\], but input z takes \[2, 3\] besides the batch"),
    "axes": ({"[2, 3]": "[6]"}, {}, r"latent_shape: \[6\], but input z takes \[2, 3\] besides the batch"),
    "batch": ({}, {"batch": 4}, "input z takes 4 codes at once; export it for 1 or any number"),
    "layout": ({"nchw": "nhwc"}, {}, r"output image has shape \[1, 32, 3, 32\] .* correct layout or colours"),
    "range too narrow": ({"[-1, 1]": "[0, 1]"}, {}, r"range: \[0, 1\], but start codes give values from -.*"),
    "range too wide": ({"[-1, 1]": "[-255, 255]"}, {}, r"range: \[-255, 255\], but start codes .*, a flat picture"),
    "range reversed": ({"[-1, 1]": "[1, -1]"}, {}, r"range \[1.0, -1.0\]: give the value of black first"),
    "prior": ({"output": "prior: {mean: [0, 1]}\noutput"}, {}, r"prior\.mean: 2 numbers; give one, or 6 as a code has"),
    "sd": ({"output": "prior: {sd: 0}\noutput"}, {}, r"prior\.sd: standard deviations are not negative"),
    "broken output": ({"output": "prior: {mean: 3.0e+38}\noutput"}, {"last": "Softsign"},
                      "NaN or infinity; correct prior"),
    "missing key": ({"layout: nchw\n": ""}, {}, r"layout: Field required; docs/generators\.md has an example"),
    "unknown key": ({"input": "inputs: z\ninput"}, {}, r"inputs: Extra inputs are not permitted"),
    "no page": ({PAGE: "just words\n"}, {}, "the page: Input should be a valid dictionary"),
    "no YAML": ({"input: z": "input: [z"}, {}, "not a YAML page about a decoder"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_page_that_does_not_fit_its_model_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    changes, model, words = WRONG[what]
    page = PAGE
    for old, new in changes.items():
        page = page.replace(old, new, 1)
    with pytest.raises(ValueError, match=words) as error:
        build_generator(settings(tmp_path, page, **model), 32, 32, 128)
    assert str(error.value).startswith(f"{tmp_path / 'decoder.yaml'}: ")
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_no_models_are_refused(tmp_path: Path) -> None:
    given = settings(tmp_path)
    with pytest.raises(ValueError, match=r"nothing\.onnx: cannot be read: No such file"):
        build_generator(given.model_copy(update={"model": tmp_path / "nothing.onnx"}), 32, 32, 128)
    given.model.write_text("no model")
    with pytest.raises(ValueError, match=r"decoder\.onnx: cannot be loaded: .*; give one ONNX file with the weights"):
        build_generator(given, 32, 32, 128)


def test_weights_in_a_second_file_are_refused_as_no_hash_would_cover_them(tmp_path: Path) -> None:
    given = settings(tmp_path)
    model = onnx.load(given.model)
    onnx.save(model, given.model, save_as_external_data=True, location="decoder.onnx.data", size_threshold=0)
    assert (tmp_path / "decoder.onnx.data").exists()
    with pytest.raises(ValueError, match=r"decoder\.onnx: cannot be loaded: .*; give one ONNX file with the weights"):
        build_generator(given, 32, 32, 128)


def test_the_example_in_the_docs_is_a_valid_page(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "generators.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n# decoder.yaml", 1)[1].split("```", 1)[0]
    path = tmp_path / "decoder.yaml"
    path.write_text(example)
    page = read_description(path)
    assert set(Description.model_fields) == page.model_fields_set, "the example shows every field"
