"""What of the documents is not run as it stands, and why. Everything else is.

A command or a piece of Python that is no longer in its page, or no longer needs its exception, is
a failure: `test_blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instead:
    """What takes the place of one command of a bash block.

    Args:
        why: What is missing here, or what is made smaller.
        run: Commands to run, one a line; "" runs nothing.
        checked: A command whose options are checked, as `van` does before it begins any work;
            `AS_IT_STANDS` the one itself; None: nothing is.
    """

    why: str
    run: str = ""
    checked: str | None = None


@dataclass(frozen=True)
class Change:
    """What is written otherwise in a block of Python; `new=None` leaves the block out."""

    old: str
    new: str | None
    why: str


AS_IT_STANDS = ""
NO_DOCKER = "needs a Docker daemon"
RAY = "needs a Ray cluster, which tests/cluster starts for these commands"
CI = "takes minutes: .ci/run runs this block whole"
SMALL = "a small model, small pictures, one epoch"
TINY = " --input-size 32 --batch-size 8 --epochs 1 --cooldown-epochs 0 --warmup-epochs 0"
# The sizes are those of the file; the recipe's own model would be VAN-B0.
FROM_SMALL = f"--pretrained small.safetensors{TINY}"
B2 = "a stand-in of 106 MB would prove nothing that VAN-B0 does not"

COMMANDS: dict[str, dict[str, Instead]] = {
    "README": {
        "pip install '.[plots]' && van demo": Instead(CI),
        "pip install -e '.[test]' && pytest -n 2 --dist loadfile": Instead(CI),
    },
    "start": {
        "van train --data flowers --pretrained --output runs/flowers": Instead(
            "the page on training does it; its best.keras is here a model of digits",
            "mkdir -p runs/flowers && cp my_van.keras runs/flowers/best.keras",
            checked=AS_IT_STANDS,
        ),
    },
    "train": {
        "van train --data flowers --pretrained --output runs/flowers": Instead(
            SMALL, f"van train --data flowers {FROM_SMALL} --output runs/flowers"
        ),
        "van train --data imagenet --recipe imagenet --model van_b0 --devices 8 --output runs/b0": (
            Instead("needs GPUs", checked=AS_IT_STANDS)
        ),
        "van train --data digits --output runs/digits": Instead(
            "two minutes; tests/train/test_demo.py trains on them, to the accuracy",
            checked=AS_IT_STANDS,
        ),
    },
    "predict": {
        "van predict photos/ --weights van_b2 --output out.csv": Instead(
            B2, "van predict photos/ --weights van_b0 --output out.csv"
        ),
        "van predict photos/ --output out.csv --shard $SLURM_ARRAY_TASK_ID/4 --resume": Instead(
            "needs Slurm, which starts it four times; the output of the blocks above is removed",
            "rm out.csv\n"
            + "\n".join(
                f"van predict photos/ --output out.csv --shard {number}/4 --resume"
                for number in range(4)
            ),
        ),
        "for i in 0 1 2 3; do van predict photos/ --output out.csv --shard $i/4 & done; wait; "
        "van merge out.csv": Instead(
            "the output of the block above is removed; two processes instead of four",
            "rm out.csv\n"
            "for i in 0 1; do van predict photos/ --output out.csv --shard $i/2 & done; wait; "
            "van merge out.csv",
        ),
    },
    "explain": {
        "van explain cat.jpg --output why-all --method grad-cam integrated-gradients lka "
        "--layer all": Instead(
            SMALL,
            "van explain cat.jpg --weights digits --output why-all --method grad-cam "
            "integrated-gradients lka --layer all",
        ),
    },
    "deploy": {
        "van export --weights van_b0 --output van_b0.onnx": Instead(
            SMALL, "van export --weights my_van.keras --output van_b0.onnx"
        ),
        "van export --weights van_b0 --output van_b0.xml --precision bfloat16": Instead(
            SMALL, "van export --weights my_van.keras --output van_b0.xml --precision bfloat16"
        ),
        "van export --weights van_b0 --format saved_model --output van_b0_saved --batch-size any "
        "--image-size any": Instead(
            SMALL,
            "van export --weights my_van.keras --format saved_model --output van_b0_saved "
            "--batch-size any --image-size any",
        ),
        "van export --weights my_van.keras --output my_van.tflite --precision int8 "
        "--data photos/": (
            Instead(
                "the model knows digits, and of anything else int8 may name another",
                "van export --weights my_van.keras --output my_van.tflite --precision int8 "
                "--data digits",
                checked=AS_IT_STANDS,
            )
        ),
        "van benchmark --weights van_b0 van_b0.onnx van_b0.xml --batch-size 1 8 --output bench": (
            Instead(
                "takes a minute and judges what is steady, which busy cores are not; "
                "tests/benchmark runs it",
                checked=AS_IT_STANDS,
            )
        ),
    },
    "segment": {
        "van segment photos/ --weights van_b2.ade20k_upernet --output segmented": Instead(
            "226 MB; a checkpoint stands in for what is downloaded",
            "van segment photos/ --weights upernet_van_b2.pth --output segmented",
        ),
        "van segment aerial.tif --weights water.keras --output water --mode slide --size own "
        "--crop 512 --stride 341": Instead(
            "a checkpoint stands in for the file of Keras, and windows that a small picture has",
            "van segment aerial.tif --weights upernet_van_b2.pth --output water --mode slide "
            "--size own --crop 32 --stride 21",
        ),
        "van export --weights upernet_van_b2.pth --output upernet.tflite --image-size 512": Instead(
            "half a minute; tests/segment/test_export.py does it", checked=AS_IT_STANDS
        ),
        "van export --weights upernet_van_b2.pth --output upernet.xml --image-size 512": Instead(
            "as upernet.onnx above; tests/segment/test_export.py does it", checked=AS_IT_STANDS
        ),
        "van export --weights upernet_van_b2.pth --output upernet --image-size any": Instead(
            "half a minute; tests/segment/test_export.py does it", checked=AS_IT_STANDS
        ),
    },
    "serve": {
        "docker build -t van-serve .": Instead(NO_DOCKER),
        'docker run --read-only --cap-drop ALL -p 127.0.0.1:8000:8000 -e VAN_TOKEN -v "$PWD/models:'
        '/models:ro" van-serve --weights /models/van_b0.safetensors': Instead(NO_DOCKER),
        "van serve --weights van_b0 --cluster local": Instead(RAY, checked=AS_IT_STANDS),
        "van serve --weights /shared/van_b0.safetensors --cluster head:6379 "
        "--cluster-workers 2:16": Instead(RAY, checked=AS_IT_STANDS),
    },
    "hubs": {
        "van evaluate --data flowers-test --weights runs/flowers --output measured": Instead(
            SMALL, "van evaluate --data digits --weights my_van.keras --output measured"
        ),
        "HF_TOKEN=... van push hf://USER/NAME --weights runs/flowers --licence cc-by-4.0 "
        "--metrics measured/results.json": Instead(
            "the stand-in of a hub has one user who may write, whose token is in the environment; "
            + SMALL,
            "van push hf://me/digits --weights my_van.keras --licence cc-by-4.0 "
            "--metrics measured/results.json",
        ),
        "van push hf://USER/NAME --weights runs/flowers --output look": Instead(
            SMALL, "van push hf://USER/NAME --weights my_van.keras --output look"
        ),
    },
    "doctor": {
        "van doctor": Instead(
            "starts every engine in a process of its own, as tests/doctor does",
            checked=AS_IT_STANDS,
        ),
    },
    "cluster": {
        "ray start --head --port 6379": Instead(RAY),
        "ray start --address HEAD:6379": Instead(RAY),
        "van train --data imagenet/ --output runs/b0 --cluster HEAD:6379 --cluster-workers 8 "
        "--gpus-per-worker 1": Instead(RAY, checked=AS_IT_STANDS),
        "van train --data DATA --output RUN --cluster ADDRESS [--cluster-workers N|MIN:MAX] "
        "[--gpus-per-worker G]": Instead(
            RAY,
            checked="van train --data flowers --output RUN --cluster local --cluster-workers 1:2 "
            "--gpus-per-worker 1",
        ),
        "van train --resume RUN --cluster ADDRESS": Instead(
            RAY, checked="van train --resume RUN --cluster local"
        ),
        "van predict pictures/ --output out.csv --cluster ADDRESS [--cluster-workers N|MIN:MAX] "
        "[--resume]": Instead(
            RAY,
            checked="van predict photos/ --output out.csv --cluster local --cluster-workers 2 "
            "--resume",
        ),
        "van evaluate --data imagenet/val --output results --cluster ADDRESS [--cluster-workers "
        "N|MIN:MAX]": Instead(
            RAY,
            checked="van evaluate --data imagenet/val --output results --cluster local "
            "--cluster-workers 1:2",
        ),
    },
}

PYTHON: dict[str, list[Change]] = {
    "hubs": [
        Change(
            'VAN("van_b0", pretrained="hf://USER/NAME", num_classes=10)',
            'VAN(pretrained="hf://USER/NAME", num_classes=7)',
            "the folder of the stand-in holds a small model of 10 classes",
        ),
    ],
    "keras-hub": [
        Change(
            'ImageClassifier.from_preset("van_b0_imagenet", num_classes=5)',
            'ImageClassifier.from_preset("van_digits", num_classes=5)',
            SMALL,
        ),
        Change(
            "tuned.fit(pictures, labels)", "tuned.fit(pictures[..., :1], labels)", "digits are grey"
        ),
        Change(
            'VANBackbone.from_preset("van_b0_imagenet"),\n        spatial',
            "VANBackbone([8, 8, 12, 12], [2] * 4, [1] * 4),\n        spatial",
            SMALL,
        ),
        Change("batch_size=8, epochs=6", "batch_size=8, epochs=1", SMALL),
        Change(
            'VANBackbone.from_preset("van_b0_imagenet"),\n        min_level',
            "VANBackbone([8, 8, 12, 12], [2] * 4, [1] * 4),\n        min_level",
            SMALL,
        ),
        Change("image_shape=(512, 512, 3)", "image_shape=(64, 64, 3)", SMALL),
        Change("batch_size=8, epochs=8", "batch_size=8, epochs=1", SMALL),
    ],
    "README": [
        Change(
            'VAN("van_b0", include_top=False, drop_path_rate=0.1)',
            "VAN(embed_dims=[8, 16], mlp_ratios=[4, 2], depths=[1, 1], include_top=False, "
            "drop_path_rate=0.1)",
            "TensorFlow traces VAN-B0 for half a minute: .ci/run runs the ten lines as they stand",
        ),
    ],
    "weights": [
        Change(
            'VAN("van_b4", pretrained="in22k")',
            'VAN("van_b0", pretrained="in1k")',
            "285 MB, of which the only source has a published hash that no stand-in can have",
        ),
    ],
    "explain": [
        Change('VAN("van_b0", pretrained=True)', 'VAN(pretrained="small.safetensors")', SMALL),
    ],
    "train": [
        Change(
            'RECIPES["finetune"].with_(model="van_b1", epochs=20)',
            'RECIPES["finetune"].with_(pretrained="small.safetensors", model=None, epochs=1, '
            "input_size=32, batch_size=8)",
            SMALL,
        ),
    ],
    "parity": [
        Change(
            "torch.backends.cudnn.allow_tf32 = False",
            None,
            "needs a GPU, torch and jax: two settings of theirs, not of this package",
        ),
    ],
}

# Languages of blocks that are no programs; other tests look into those of serve.md.
DATA = {"", "text", "yaml", "nginx", "dockerfile", "bibtex", "{toctree}"}
