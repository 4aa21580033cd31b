"""`van serve` for a client of others; a measurement of `serving.py`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving_bench import TOKEN, Bench, Part, answers_now
from serving_server import watched


@watched
def triton(bench: Bench) -> Part:
    """`tritonclient` (HTTP): metadata, and both inputs, as JSON and binary."""
    try:
        import tritonclient.http as client_of
    except ImportError:
        raise SystemExit("triton: pip install 'tritonclient[http]'") from None
    import numpy as np

    part, headers = Part(), {"Authorization": f"Bearer {TOKEN}"}
    pictures = bench.files.pictures[:4]
    with bench.server() as server:
        body = server.get("/about", TOKEN)[1]
        name = json.loads(body)["models"][0]["name"]
        expected = answers_now(
            replace(bench, files=replace(bench.files, pictures=pictures)), server.address
        )
        client = client_of.InferenceServerClient(f"{server.address.host}:{server.address.port}")
        try:
            alive = [
                client.is_server_live(headers=headers),
                client.is_server_ready(headers=headers),
                client.is_model_ready(name, headers=headers),
            ]
            about = client.get_server_metadata(headers=headers)
            model = client.get_model_metadata(name, headers=headers)
            inputs = [one["name"] for one in model["inputs"]]
            worst: dict[str, float] = {}
            for binary in (True, False):
                for kind, data in _inputs(bench, pictures, binary).items():
                    given = client_of.InferInput(kind, list(data.shape), _TYPES[kind])
                    given.set_data_from_numpy(data, binary_data=binary)
                    wanted = client_of.InferRequestedOutput("probabilities", binary_data=binary)
                    # It writes into the headers that it is given.
                    answer = client.infer(name, [given], outputs=[wanted], headers=dict(headers))
                    shares = np.asarray(answer.as_numpy("probabilities"))
                    worst[f"{kind}, {'binary' if binary else 'JSON'}"] = max(
                        abs(float(row[i]) / share - 1)
                        for row, known in zip(shares, expected, strict=True)
                        for i, share in known.items()
                    )
        finally:
            client.close()
    part.details = {"server": about, "model": model, "differences": worst}
    good = all(alive) and set(inputs) >= {"images", "pictures"}
    text = f"{about['name']} {about['version']}, inputs {', '.join(inputs)}"
    part.add("tritonclient: live, ready, metadata", "read", text, good)
    for kind, difference in worst.items():
        text = f"probabilities differ by {difference:.1e} of those of /predict"
        part.add(f"tritonclient infers: {kind}", "<= 1e-4", text, difference <= 1e-4)
    return part


_TYPES = {"images": "FP32", "pictures": "BYTES"}


def _inputs(bench: Bench, pictures: Sequence[bytes], binary: bool) -> dict[str, Any]:
    """Input name -> array. JSON has no bytes: there, pictures are text, in base64."""
    import numpy as np

    from van_classification_tensorflow import Classifier
    from van_classification_tensorflow.images.decode import open_image

    prepare = Classifier(bench.files.weights).preprocessing.views
    images = np.concatenate([prepare(open_image(one)) for one in pictures])
    files = pictures if binary else [base64.b64encode(one) for one in pictures]
    return {"images": images.astype(np.float32), "pictures": np.array(files, np.object_)}
