"""The benchmark's own logic, without starting an engine: names, weights, refusal, report."""

import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from van_classification_tensorflow import VAN
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.spec.architecture import Architecture

from .parity import seeded_tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The benchmarks import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture
def speed():
    import speed

    return speed


@pytest.fixture
def weights():
    import weights

    return weights


@pytest.fixture
def deployment():
    import deployment

    return deployment


@pytest.fixture
def gpu():
    import gpu

    return gpu


@pytest.fixture
def deployed():
    import deployed

    return deployed


@pytest.fixture
def folder():
    import folder

    return folder


def test_weights_are_those_of_the_proof(weights):
    model = VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=3)
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(
            weights.seeded(name, array.shape), seeded_tensor(name, array.shape), err_msg=name
        )


@pytest.mark.parametrize("wrong", [0.5, math.nan])
def test_disagreeing_contenders_are_refused(speed, wrong):
    setting = speed.Setting(mode="inference", model="van_b0", batch=8)
    ours, peer = {"name": "keras", "check": [1.0, 2.0]}, {"name": "torch_eager"}
    speed.require_agreement(ours, {**peer, "check": [1.0, 2.0001]}, setting)
    with pytest.raises(SystemExit, match="disagree"):
        speed.require_agreement(ours, {**peer, "check": [1.0, 2.0 + wrong]}, setting)


def test_report_uses_the_best_launch(speed):
    setting = speed.Setting(mode="inference", model="van_b0", batch=8)
    launches = {
        setting: {
            "keras": [{"median_ms": 100.0}, {"median_ms": 180.0}],
            "onnxruntime": [{"median_ms": 90.0}, {"median_ms": 80.0}],
        }
    }
    (line,) = speed.targets_report(launches)
    assert line.startswith("- inference, van_b0, batch 8: keras 0.80 x onnxruntime, asked 0.7 x")
    assert "met" in line
    rows = speed.table(launches, gflops=200.0).splitlines()
    assert "| keras | 100.0 | 80.0 | 1.80 | 1.00 |" in rows[2]
    assert "| onnxruntime | 80.0 | 100.0 | 1.12 | 0.80 |" in rows[3]


def test_each_contender_of_ours_has_its_own_target(speed, setting):
    def asked(mode, batch, **ms):
        results = {name: [{"median_ms": one}] for name, one in ms.items()}
        found = speed.targets_report({speed.Setting(mode, "van_b0", batch): results})
        return [line.split(": ", 1)[1] for line in found]

    inference = {"keras_fused": 10.0, "accelerated": 5.0, "keras_jax": 8.0, "onnxruntime": 5.0}
    for batch, fused in ((1, 0.6), (8, 0.8)):
        assert asked("inference", batch, **inference) == [
            f"keras_fused 0.50 x onnxruntime, asked {fused} x: MISSED",
            "accelerated 1.00 x onnxruntime, asked 1.0 x: met",
            "keras_jax 0.62 x onnxruntime, asked 0.6 x: met",
        ]
    for batch in (8, 32):
        assert asked("training", batch, keras=4.0, keras_jax=9.0, torch_channels_last=6.0) == [
            "keras 1.50 x torch_channels_last, asked 1.5 x: met",
            "keras_jax 0.67 x torch_channels_last, asked 0.7 x: MISSED",
        ]


def test_one_command_measures_every_target(speed, monkeypatch):
    monkeypatch.setattr("sys.argv", ["speed.py"])
    args = speed.parse_args()
    plan = {setting: speed.contenders_of(setting, args) for setting in args.settings}
    for target in speed.TARGETS:
        for model in ("van_b0", "van_b1"):
            names = plan[speed.Setting(target.mode, model, target.batch)]
            assert {target.ours, target.peer} <= set(names)
    monkeypatch.setattr("sys.argv", ["speed.py", "--batches", "2", "--mode", "training"])
    assert [setting.batch for setting in speed.parse_args().settings] == [2, 2]


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_are_interleaved_and_floors_are_the_best(speed, monkeypatch, rounds):
    setting = speed.Setting(mode="inference", model="van_b0", batch=1)
    order, compared, rates = [], [], iter([{"gemm_gflops": r} for r in (100.0, 300.0, 200.0)])
    monkeypatch.setattr(speed, "run_worker", lambda command: order.append(command) or next(rates))

    def launch(name, setting):
        order.append(name)
        return {"name": name, "median_ms": float(len(order))}

    launches, floors = speed.run_all(
        {setting: ["a", "b"]},
        launch,
        lambda first, result, setting: compared.append((first["median_ms"], result["name"])),
        rounds,
        "floors",
    )
    assert order == ["floors", "a", "b"] * rounds
    assert [run["median_ms"] for run in launches[setting]["b"]] == [3.0, 6.0, 9.0][:rounds]
    assert floors == {"gemm_gflops": 100.0 if rounds == 1 else 300.0}
    assert compared == [(2.0, "a"), (2.0, "b")] * rounds  # always with the very first launch


# --- Deployment ---


def launched(name, ms, precision="float32", size=None, check=()):
    return {
        "name": name,
        "median_ms": ms,
        "precision": precision,
        "bytes": size,
        "check": list(check),
    }


@pytest.fixture
def setting(speed):
    return speed.Setting(mode="inference", model="van_b0", batch=8)


LOGITS = [0.5, -1.0, 2.0, 0.25]


@pytest.mark.parametrize(
    ("precision", "check", "agree"),
    [
        ("float32", np.add(LOGITS, [0, 0, 9e-4, 0]), True),
        ("float32", np.add(LOGITS, [0, 0, -1.1e-3, 0]), False),
        ("float32", [0.5, -1.0, math.nan, 0.25], False),
        ("float32", LOGITS[:1], False),
        ("bfloat16", np.add(LOGITS, [0, -0.049, 0, 0]), True),
        ("bfloat16", np.add(LOGITS, [0, 0.051, 0, 0]), False),
        ("bfloat16", [math.nan] * 4, False),
        ("int8", [0.4, -0.8, 1.5, 0.5], True),
        ("int8", [0.5, 1.0, 2.0, 0.25], False),  # correlation 0.77
        ("int8", [-0.5, 1.0, -2.0, -0.25], False),
        ("int8", [1.0] * 4, False),
        ("int8", [math.nan] * 4, False),
    ],
)
def test_deployed_contenders_agree_as_far_as_their_precision(
    deployment, setting, precision, check, agree
):
    reference = launched("peer_ort_f32", 1.0, check=LOGITS)
    result = launched("ours", 1.0, precision, check=check)
    if agree:
        deployment.require_agreement(reference, result, setting)
    else:
        with pytest.raises(SystemExit, match=r"(?s)ours.*no result|ours: 1 logits for 4"):
            deployment.require_agreement(reference, result, setting)


@pytest.fixture
def launches(setting):
    runs = {
        "peer_ort_f32": [(30.0, "float32", 16_000_000), (20.0, "float32", 16_000_000)],
        "peer_ov_bf16": [(10.0, "bfloat16", 16_000_000)],
        "ort_f32": [(19.0, "float32", 16_000_000), (25.0, "float32", 16_000_000)],
        "ort_int8": [(12.0, "int8", 5_000_000)],
        "ov_f32": [(21.0, "float32", 16_000_000)],
        "ov_bf16": [(9.0, "bfloat16", 8_000_000)],
        "ov_int8": [(10.0, "int8", 4_800_000)],
        "litert_f32": [(40.0, "float32", 16_000_000)],
        "litert_int8": [(21.0, "int8", 4_000_000)],
        "keras_tf": [(32.0, "float32", None)],
        "keras_openvino": [(25.0, "float32", None)],
    }
    return {setting: {n: [launched(n, *run) for run in r] for n, r in runs.items()}}


def test_deployment_targets(deployment, launches):
    assert list(deployment.targets_report(launches)) == [
        f"- van_b0, batch 8: {line}"
        for line in (
            "ort_f32 (float32) 1.05 x peer_ort_f32, asked 1.05 x: met",
            "ov_bf16 (bfloat16) 2.22 x peer_ort_f32, asked 2.0 x: met",
            "ov_bf16 (bfloat16) 1.11 x peer_ov_bf16, asked 1.1 x: met",
            "litert_int8 (int8) 1.90 x litert_f32, asked 2.0 x: MISSED",
            "keras_openvino (float32) 0.80 x peer_ort_f32, asked 0.8 x: met",
            "ort_int8 has 0.31 of ort_f32's bytes, asked at most 0.3: MISSED",
            "ov_int8 has 0.30 of ov_f32's bytes, asked at most 0.3: met",
            "litert_int8 has 0.25 of litert_f32's bytes, asked at most 0.3: met",
        )
    ]


def test_keras_is_asked_for_less_at_batch_1(deployment, setting):
    results = {
        "peer_ort_f32": [launched("peer_ort_f32", 7.0)],
        "keras_tf": [launched("keras_tf", 10.0)],
    }
    one, eight = (
        list(deployment.targets_report({setting._replace(batch=batch): results}))
        for batch in (1, 8)
    )
    assert one == ["- van_b0, batch 1: keras_tf (float32) 0.70 x peer_ort_f32, asked 0.65 x: met"]
    assert eight == [
        "- van_b0, batch 8: keras_tf (float32) 0.70 x peer_ort_f32, asked 0.8 x: MISSED"
    ]


def test_every_target_names_contenders(deployment):
    named = {name for target in deployment.TARGETS for name in (*target.ours, target.against)}
    named |= {name for pair in (*deployment.SIZES, *deployment.PAIRS) for name in pair}
    assert named | {"peer_ov_f32"} == set(deployment.DEPLOYED)


def test_deployment_table(deployment, launches, setting):
    # 13.824 GFLOP a batch: 6.9 ms at 2000 GFLOP/s, 1.4 ms at 10,000.
    floors = {"gemm_gflops": 2000.0, "gemm_bfloat16_gflops": 10_000.0, "copy_gb_per_s": 20.0}
    rows = {
        cells[3]: cells
        for line in deployment.table(launches, floors).splitlines()[2:]
        for cells in [[cell.strip() for cell in line.split("|")]]
    }
    moved = deployment.traffic_of("van_b0").megabytes(8, "float32")
    assert rows["peer_ort_f32"][4:9] == ["20.0", "400.0", "1.50", "1.00", "35%"]
    assert rows["peer_ort_f32"][9:12] == [f"{moved:.1f}", f"{moved / 20 / 20:.0%}", "16.0"]
    assert rows["ov_bf16"][4:10] == ["9.0", "888.9", "1.00", "2.22", "15%", f"{moved / 2:.1f}"]
    assert rows["ov_int8"][8:10] == ["-", f"{moved / 4:.1f}"]  # no floor was measured
    assert rows["keras_tf"][11] == "-"
    assert "keras_openvino (float32)" in rows  # not the precision one would expect


def test_traffic_of_a_model_counted_by_hand(deployment):
    sizes = Architecture((4, 6), (8, 18), (1, 0), 3, 10)
    found = deployment.traffic(sizes, image_size=32)
    # 32 x 32 -> 7 x 7, stride 4 -> 8 x 8; block: five of 4 -> 4 (two depthwise), 4 -> 8, 8 -> 8,
    # 8 -> 4; 3 x 3, stride 2 -> 4 x 4; head.
    activations = 3 * 1024 + 4 * 64 + 64 * (5 * 8 + 12 + 16 + 12) + 4 * 64 + 6 * 16 + 6 + 10
    weights = 4 * 3 * 49 + 4 + 3 * (16 + 4) + 4 * 25 + 4 + 4 * 49 + 4
    weights += (32 + 8) + (8 * 9 + 8) + (32 + 4) + 6 * 4 * 9 + 6 + 60 + 10
    assert found == (activations, weights)
    assert found.megabytes(2, "bfloat16") == pytest.approx((2 * activations + weights) * 2e-6)


def test_traffic_counts_every_parameter_of_the_fused_convolutions(deployment):
    # 4,105,800 trainable: less the batch norms', layer norms' and layer scales' numbers.
    dims, depths = (32, 64, 160, 256), (3, 3, 5, 2)
    others = sum(d * (2 + n * (2 * 2 + 2) + 2) for d, n in zip(dims, depths, strict=True))
    assert deployment.traffic_of("van_b0").weights == 4_105_800 - others


def test_operators_side_by_side(deployment):
    def row(operator, ms, nodes):
        return {"operator": operator, "kernel": "jit", "ms": ms, "nodes": nodes}

    text = deployment.operators_table(
        [row("Conv", 6.0, 9), row("Norm", 4.0, 2)], [row("Conv", 5.0, 8), row("Add", 5.0, 1)], "ab"
    )
    assert text.splitlines()[2:] == [
        "| Conv | jit | 6.00 | 60% | 9 | 5.00 | 50% | 8 |",
        "| Add | jit |  |  |  | 5.00 | 50% | 1 |",
        "| Norm | jit | 4.00 | 40% | 2 |  |  |  |",
        "| all | | 10.00 | | | 10.00 | | |",
    ]
    assert {line.count("|") for line in text.splitlines()} == {9}


def test_onnx_profile_is_split_into_steps(deployed):
    def run(start, us):
        def node(name, ts, operator):
            event = {"name": f"{name}_kernel_time", "ts": ts, "dur": us}
            return {**event, "args": {"op_name": operator}}

        # As written: the session's own events last.
        conv, mul = node("b", start + 4, "Conv"), node("a", start, "Mul")
        return [conv, mul, {"name": "model_run", "ts": start, "dur": 900, "args": {}}]

    start = {"name": "session_initialization", "ts": 0, "dur": 1, "args": {}}
    steps = deployed.onnx_steps([start, *run(1000, 50), *run(2000, 30)])
    for found, ms in zip(steps, (0.05, 0.03), strict=True):
        assert [(node.operator, node.ms) for node in found] == [
            ("Mul", pytest.approx(ms)),
            ("Conv", pytest.approx(ms)),
        ]


def test_operators_are_those_of_the_median_step(deployed):
    def step(factor):
        kinds = (("a", "Mul", "x"), ("b", "Conv", "x"), ("c", "Conv", "x"), ("d", "Conv", "y"))
        return [
            deployed.Node(*kind, ms * factor)
            for kind, ms in zip(kinds, (2.0, 3.0, 4.0, 1.0), strict=True)
        ]

    assert deployed.by_operator(map(step, (9, 1, 2, 1.5, 8))) == [
        {"operator": "Conv", "kernel": "x", "ms": 14.0, "nodes": 2},
        {"operator": "Mul", "kernel": "x", "ms": 4.0, "nodes": 1},
        {"operator": "Conv", "kernel": "y", "ms": 2.0, "nodes": 1},
    ]


def test_openvino_artefact_is_both_its_files(deployed, tmp_path):
    for name, size in (("van.xml", 10), ("van.bin", 300), ("peer.onnx", 7)):
        (tmp_path / name).write_bytes(b"0" * size)
    assert deployed.file_size(tmp_path / "van.xml") == 310
    assert deployed.file_size(tmp_path / "peer.onnx") == 7


@pytest.fixture
def job(deployed, tmp_path):
    return deployed.Job("ov_int8", "van_b0", 8, "inference", 2, tmp_path)


def test_a_file_is_written_once_and_whole(deployed, job, monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        deployed.write(job, Path(command[command.index("--write") + 1]))

    def export(job, path):
        path.write_text("graph")
        path.with_suffix(".bin").write_text("weights")

    monkeypatch.setattr(deployed.subprocess, "run", run)
    monkeypatch.setattr(deployed, "export_ours", export)
    path = deployed.artefact(job)
    assert path.name == "van_b0.xml"
    assert sorted(f.name for f in path.parent.iterdir()) == ["van_b0.bin", "van_b0.xml"]
    assert deployed.artefact(job) == path
    assert len(started) == 1
    deployed.artefact(replace(job, batch=1))
    assert len(started) == 2


def test_an_interrupted_file_leaves_nothing(deployed, job, monkeypatch):
    def export(job, path):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(deployed, "export_ours", export)
    with pytest.raises(KeyboardInterrupt):
        deployed.write(job, job.onnx_dir / "ov_int8" / "van_b0.xml")
    assert list(job.onnx_dir.iterdir()) == []


def test_files_of_other_sources_or_libraries_are_others(deployed, monkeypatch):
    before = deployed._fingerprint()
    assert deployed._fingerprint() == before
    with monkeypatch.context() as patch:
        patch.setattr(deployed.metadata, "version", lambda library: "0.0")
        assert deployed._fingerprint() != before
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "layers.py")
    )
    assert deployed._fingerprint() != before


def test_the_reference_runs_first_and_peers_in_their_interpreter(deployment, monkeypatch):
    command = ["deployment.py", "--contenders", "ov_bf16", "peer_ov_bf16", "--python-peers", "P"]
    monkeypatch.setattr("sys.argv", [*command, "--python-ours", "O", "--batches", "8"])
    args = deployment.parse_args()
    assert args.contenders == ["peer_ort_f32", "peer_ov_bf16", "ov_bf16"]
    assert [(s.model, s.batch) for s in args.settings] == [("van_b0", 8), ("van_b1", 8)]
    started = []
    monkeypatch.setattr(deployment, "run_worker", lambda command: started.append(command) or {})
    for name in args.contenders:
        deployment.launch(args, name, args.settings[0], "--operators")
    assert [command[0] for command in started] == ["P", "P", "O"]
    assert [command[2] for command in started] == args.contenders
    for command in started:
        assert command[1].endswith("deployed.py")
        assert " --batch 8 " in f"{' '.join(command)} "
        assert command[-1] == "--operators"


# --- A folder of pictures ---


@pytest.fixture
def of_folder(speed):
    return speed.Setting("folder", "van_b0", 8)


@pytest.fixture
def expected(folder, tmp_path):
    """What the peer found of two pictures with three classes, through its file."""
    from folder_contender import write_table

    logits = [np.array(one, np.float32) for one in ([0, 3, 1], [2, -1, 2.00005])]
    write_table(tmp_path / "x.csv", ["/there/a.jpg", "/there/b.jpg"], logits, 3)
    return folder.read_table(tmp_path / "x.csv")


def test_a_table_is_ranked_and_read_as_logarithms(expected):
    assert [list(classes) for classes in expected.values()] == [[1, 2, 0], [2, 0, 1]]
    logs = np.array([0, 3, 1]) - np.log(np.exp([0, 3, 1]).sum())
    assert expected["a.jpg"] == pytest.approx(dict(enumerate(logs)), abs=1e-6)


def test_what_van_predict_writes_is_read(folder, tmp_path):
    from van_classification_tensorflow.inference.records import WRITERS

    named = [
        {"label": "x", "wnid": None, "index": i, "probability": p} for i, p in ((7, 0.5), (2, 0.25))
    ]
    record = {"path": "/p/a.jpg", "error": None, "predictions": named}
    WRITERS[".csv"](tmp_path / "x.csv", lambda: [record], 2, False)
    assert folder.read_table(tmp_path / "x.csv") == {"a.jpg": {7: math.log(0.5), 2: math.log(0.25)}}


@pytest.mark.parametrize(
    ("picture", "order", "shift", "match"),
    [
        ("a.jpg", [1, 2], 0.0, None),
        ("a.jpg", [1, 2], 9e-4, None),
        ("a.jpg", [1, 2], 1.1e-3, "logarithm of class 1"),
        ("a.jpg", [1, 2], math.nan, "logarithm of class 1"),
        ("a.jpg", [2, 1], 0.0, "is 2, of the peer 1"),
        ("b.jpg", [0, 2], 0.0, None),  # the first two are as good as equal
    ],
)
def test_other_answers_of_a_folder_are_refused(folder, expected, picture, order, shift, match):
    other = next(name for name in expected if name != picture)
    found = {picture: {i: expected[picture][i] + shift for i in order}, other: expected[other]}
    if match is None:
        return folder.require_agreement("x", expected, found, 2)
    with pytest.raises(SystemExit, match=match):
        folder.require_agreement("x", expected, found, 2)


def test_pictures_that_were_left_out_are_refused(folder, expected):
    with pytest.raises(SystemExit, match="1 pictures for 2"):
        folder.require_agreement("x", expected, {"a.jpg": expected["a.jpg"]}, 2)


def test_an_evaluation_must_have_the_figures_of_the_peers_answers(folder, expected, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in expected:
        (pictures / name).touch()
    folder.label(pictures, tmp_path / "labelled", expected)
    there = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("labelled/*/*"))
    assert there == ["labelled/0/b.jpg", "labelled/1/a.jpg"]  # b.jpg: the peer's second
    loss = -(expected["a.jpg"][1] + expected["b.jpg"][0]) / 2
    table = "│ Engine │ ONNX Runtime 1.2 on 2 threads, float32: first │\n│ Top-1  │ {:.3f}%, 95 % │"
    table += "\n│ Loss   │ {:.4f} nats │"
    folder.require_figures("x", expected, table.format(50, loss))
    assert folder.engine_of(table) == "ONNX Runtime 1.2 on 2 threads"
    for figures in ((100, loss), (50, loss + 0.002), (50, math.nan)):
        with pytest.raises(SystemExit, match="no result is reported"):
            folder.require_figures("x", expected, table.format(*figures))


def test_the_peer_prepares_pictures_as_the_weights_want(tmp_path):
    from folder_contender import prepared
    from PIL import Image

    from van_classification_tensorflow.spec.preprocessing import Preprocessing

    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (ours,) = Preprocessing().views(Image.fromarray(pixels))
    np.testing.assert_allclose(
        prepared(tmp_path / "x.png", 224), ours.transpose(2, 0, 1), atol=1e-6
    )


def test_the_peer_fills_its_last_batch_up(tmp_path, monkeypatch):
    import folder_contender

    class Session:
        def __init__(self, *_, **__):
            self.sums = []

        def get_inputs(self):
            return [Namespace(name="images", shape=[2, 3, 4, 4])]

        def run(self, _, feed):
            return [feed["images"].sum(axis=(1, 2, 3))[:, None] / 48]

    runtime = Namespace(SessionOptions=lambda: Options(), InferenceSession=Session)

    class Options:
        def add_session_config_entry(self, *_):
            pass

    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(
        folder_contender, "prepared", lambda path, size: np.full((3, size, size), float(path))
    )
    run = folder_contender.onnxruntime(Namespace(threads=2, weights="x.onnx"))
    found = run([str(i) for i in range(23)])
    assert [float(one[0]) for one in found] == [float(i) for i in range(23)]


def test_time_of_fewer_pictures_is_scaled(folder):
    inside = {"name": "pipeline", "median_ms": 200.0, "passes": [200.0], "classified": 10}
    result = {"name": "pipeline_warm", "pictures": 50, "classified": 50, "median_ms": 700.0}
    warm, whole = (result | folder.scaled(result, inside, warm) for warm in (True, False))
    assert (warm["median_ms"], whole["median_ms"]) == (1000.0, 1500.0)
    assert warm["name"] == "pipeline_warm"
    assert (warm["pictures"], warm["classified"]) == (50, 10)


def test_folder_report(folder, of_folder):
    def run(ms, **more):
        return {"median_ms": ms, "pictures": 50, "classified": 50, **more}

    results = {
        "predict_auto": [run(1200.0), run(1000.0)],
        "evaluate_auto": [run(1250.0, engine="ONNX Runtime")],
        "first_answer_auto": [run(1100.0), run(900.0)],
        "onnxruntime": [run(1000.0)],
        "onnxruntime_warm": [run(500.0)],
        "pipeline": [run(4000.0, classified=10)],
    }
    every = folder.contenders(["auto"])
    rows = folder.table_of({of_folder: results}, every).splitlines()[2:]
    assert rows[0] == "| van_b0 | 8 | predict_auto | 1.00 | 50.0 | 1.20 | 1.00 | 4.00 |"
    assert rows[3] == "| van_b0 | 8 | onnxruntime_warm | 0.50 | 100.0 | 1.00 | 1.00 | - |"
    assert rows[4] == "| van_b0 | 8 | pipeline (10) | 4.00 | 12.5 | 1.00 | 0.25 | 1.00 |"
    assert len(rows) == 5
    assert list(folder.remarks({of_folder: results}, every)) == [
        "- folder, van_b0, batch 8: evaluate_auto ran on ONNX Runtime",
        "- folder, van_b0, batch 8: first_answer_auto after 0.90 s, asked 1.0 s: met",
    ]
    assert list(folder.targets_report({of_folder: results}, folder.TARGETS)) == [
        f"- folder, van_b0, batch 8: {line}"
        for line in (
            "predict_auto 1.00 x onnxruntime, asked 1.0 x: met",
            "predict_auto 4.00 x pipeline, asked 3.0 x: met",
            "evaluate_auto 0.80 x onnxruntime, asked 1.0 x: MISSED",
        )
    ]


def test_every_target_of_a_folder_names_contenders(folder):
    every = folder.contenders(["auto", "openvino"])
    assert {name for t in folder.TARGETS for name in (t.ours, t.peer)} <= set(every)
    assert {"predict_openvino", "classifier_openvino_warm"} <= set(every)


def test_each_contender_of_a_folder_is_started_with_its_own_files(folder, of_folder, monkeypatch):
    monkeypatch.setattr(folder.os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr("sys.argv", ["folder.py", "--python-ours", "O", "--python-peers", "P"])
    args = folder.parse_args()
    places = ("tmp", "pictures", "labelled", "x.pth", "peer", "x.onnx")
    files = folder.Files(*map(Path, places), {})
    commands = {
        name: folder.command_of(args, who, of_folder, files, Path("t.csv"))
        for name, who in args.contenders.items()
    }
    assert {name: command[0] for name, command in commands.items()} == {
        **dict.fromkeys(commands, "O"),
        **dict.fromkeys(("onnxruntime", "onnxruntime_warm", "pipeline", "pipeline_warm"), "P"),
    }
    van = ["O", "-m", "van_classification_tensorflow"]
    weights = ["--weights", "x.pth", "--engine", "auto"]
    assert commands["predict_auto"] == [*van, "predict", "pictures", "--output", "t.csv", *weights]
    assert commands["evaluate_auto"] == [*van, "evaluate", "--data", "labelled", *weights]
    assert commands["first_answer_auto"] == [*van, "predict", "pictures", *weights]
    assert commands["onnxruntime"][2:6] == ["onnxruntime", "pictures", "--weights", "x.onnx"]
    for name, command in commands.items():
        assert ("--passes" in command) == name.endswith("_warm")
        assert ("--pictures" in command) == name.startswith("pipeline")


# --- GPU ---


class Answering:
    """In place of a process: answers from a list, and notes what it was asked."""

    def __init__(self, name, answers):
        self.name, self.answers, self.asked = name, iter(answers), []

    def ask(self, do, setting, **more):
        self.asked.append(do)
        return next(self.answers)


@pytest.fixture
def on_gpu(gpu):
    return gpu.Setting("inference", "van_b0", 128, "float32")


def test_who_takes_part_on_a_gpu(gpu, on_gpu):
    assert gpu.contenders_of(on_gpu, gpu.CONTENDERS) == list(gpu.CONTENDERS)
    training = gpu.contenders_of(on_gpu._replace(mode="training"), gpu.CONTENDERS)
    assert not {"keras_jax_fused", "keras_torch_fused"} & set(training)
    short = gpu.contenders_of(on_gpu._replace(precision="tf32"), gpu.CONTENDERS)
    assert short == ["keras_torch", "keras_torch_fused", "keras_torch_compile"]


def test_what_runs_out_of_memory_is_tried_again(gpu, on_gpu):
    ready = {"check": [1.0], "first_seconds": 1.0}
    worker = Answering("torch_eager", [{}, {"error": "CUDA out of memory"}, {}, ready])
    found = dict(gpu.prepare(worker, [on_gpu], gpu.threading.Lock(), math.inf))
    assert found == {on_gpu: ready}
    assert worker.asked == ["build", "check"] * 2
    late = dict(gpu.prepare(worker, [on_gpu], gpu.threading.Lock(), -math.inf))
    assert late == {on_gpu: {"error": "not compiled in time"}}


@pytest.mark.parametrize("wrong", [0.02, math.nan])
def test_who_disagrees_on_a_gpu_is_not_timed(gpu, on_gpu, wrong):
    right, off = {"check": [1.0, 2.0]}, {"check": [1.0, 2.0 + wrong]}
    short = {"check": [1.0, 2.005]}
    measured = {on_gpu: {"a": right, "b": off}, on_gpu._replace(precision="tf32"): {"c": short}}
    gpu.refuse(measured)
    assert "error" not in right
    assert "disagrees" in off["error"]
    assert short == {"difference": pytest.approx(0.005)}


def test_gpu_tables(gpu, on_gpu):
    def rounds(*times):
        return {"rounds": [{"median_ms": ms, "peak_mb": 1234.5} for ms in times]}

    measured = {on_gpu: {"keras_jax": rounds(40.0, 32.0), "torch_eager": rounds(16.0)}}
    measured[on_gpu]["torch_compile"] = {"error": "not compiled in time"}
    names = ["keras_jax", "torch_eager", "torch_compile"]
    rates = {"gemm_tf32_gflops": 4e5, "copy_gb_per_s": 4000.0}
    row = gpu.table(measured, rates, names).splitlines()[2]
    moved = gpu.traffic_of("van_b0").megabytes(128, "float32")  # takes longer than the operations
    floor = 128e3 / (moved / 4000)
    prefix = "| inference | van_b0 | 128 | float32 |"
    assert row == f"{prefix} {floor:,.0f} | 4,000 | 8,000 | - | 0.50 |"
    assert gpu.memory_table(measured, names).splitlines()[2] == f"{prefix} 1,234 | 1,234 | - |"
    (line,) = gpu.problems(measured)
    assert line.endswith("torch_compile: not compiled in time")


def test_kernels_of_a_trace():
    from gpu_contender import stream_kernels

    def kernel(name, tid, us):
        return {"ph": "X", "name": name, "pid": 1, "tid": tid, "dur": us}

    names = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}
        for tid, name in ((1, "Stream #13(Compute)"), (2, "python"))
    ]
    events = [kernel("loop_fusion_3", 1, 500), kernel("loop_fusion", 1, 250), kernel("f", 2, 9)]
    assert stream_kernels([*events, *names]) == {"loop_fusion": (0.75, 2)}
