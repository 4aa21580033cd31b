"""The workers that train one model together: which one this is, and what they tell each other.

Each is a process, and holds a whole copy of the model and its rows of each batch. On TensorFlow
they are those of a `tf.distribute.MultiWorkerMirroredStrategy`, on JAX those of `jax.distributed`
with a `keras.distribution`. All run the same callbacks in the same order; what depends on a clock,
a file or a signal is decided by the first and shared, and the first alone writes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import keras
import numpy as np

_T = TypeVar("_T")


class Workers:
    """One worker, alone: what it says it hears.

    Attributes:
        rank: Which this is, from 0.
        count: How many there are.
        strategy: Of `tf.distribute`, if the model is to be made in its scope.
    """

    def __init__(self, rank: int = 0, count: int = 1, strategy: Any = None):
        self.rank, self.count, self.strategy = rank, count, strategy

    @property
    def leads(self) -> bool:
        """Whether this is the first, which alone writes."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Copies of the model, over all workers."""
        return getattr(self.strategy, "num_replicas_in_sync", self.count)

    def scope(self) -> contextlib.AbstractContextManager:
        """Where the model, its optimizer and its metrics are made."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def local(self) -> contextlib.AbstractContextManager:
        """Where models are made that are of one worker alone: read, or saved."""
        return contextlib.nullcontext()

    def gather(self, values: np.ndarray) -> np.ndarray:
        """What each has given, to the bit and of one shape, in the order of ranks: (count, ...).

        All of them must call it, equally often.
        """
        return values[None]

    def share(self, value: int) -> int:
        """What the first has given; all of them must call it."""
        return int(self.gather(np.array([value], np.int64))[0, 0])

    def texts(self, text: str) -> list[str]:
        """What each has said, in the order of ranks; all of them must call it."""
        said = text.encode("utf-8", "backslashreplace")
        sizes = self.gather(np.array([len(said)], np.int64))[:, 0]
        padded: np.ndarray = np.zeros(sizes.max(), np.uint8)
        padded[: len(said)] = np.frombuffer(said, np.uint8)
        rows = self.gather(padded) if padded.size else np.zeros((self.count, 0), np.uint8)
        return [
            row[:size].tobytes().decode("utf-8", "replace")
            for row, size in zip(rows, sizes, strict=True)
        ]

    def together(self, do: Callable[[], _T]) -> _T:
        """What `do` gives; where it fails on one of them, an error on all.

        Raises:
            ValueError: It failed on another worker; names it and says why.
        """
        if self.count == 1:
            return do()
        result, error = None, None
        try:
            result = do()
        except Exception as caught:
            error = caught
        said = self.texts("" if error is None else str(error) or repr(error))
        if error is not None:
            raise error
        for rank, text in enumerate(said):
            if text:
                raise ValueError(f"worker {rank} of {self.count}: {text}")
        return result  # type: ignore[return-value]

    def first_alone(self, do: Callable[[], object]) -> None:
        """Has the first do what the others wait for, such as writing; it may make models.

        Raises:
            ValueError: It failed on the first, as the others are told.
        """

        def done() -> None:
            if self.leads:
                with self.local():
                    do()

        self.together(done)

    def check_equal(self, about: Mapping[str, str]) -> None:
        """Whether all of them say the same of everything.

        Raises:
            ValueError: What differs first, between which workers.
        """
        told = [json.loads(text) for text in self.texts(json.dumps(about))]
        for rank, one in enumerate(told):
            for name, value in one.items():
                if value != told[0][name]:
                    raise ValueError(
                        f"all workers must have the same {name}. Received: {value} on worker "
                        f"{rank}, {told[0][name]} on worker 0"
                    )

    def prepare(self, model: keras.Model) -> None:
        """Makes `fit` of a model that was made in `scope` work."""

    def dataset(self, made: Any) -> Any:
        """The batches of this worker, as `fit` takes them."""
        return made

    def predict(self, model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
        """What gives a model's outputs for images, without the other workers."""
        return lambda images: np.asarray(model.predict_on_batch(images))


class _TensorFlowWorkers(Workers):
    """Those of a `MultiWorkerMirroredStrategy`."""

    def __init__(self, strategy: Any):
        resolver = strategy.cluster_resolver
        super().__init__(int(resolver.task_id), len(resolver.cluster_spec().as_dict()["worker"]))
        self.strategy = strategy

    def gather(self, values: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        values = np.ascontiguousarray(values)
        padded: np.ndarray = np.zeros((1, -(-values.nbytes // 4)), np.int32)  # of bytes it has none
        padded.view(np.uint8)[0, : values.nbytes] = values.reshape(-1).view(np.uint8)
        found = self._gathered(tf.constant(padded))
        rows = self.strategy.experimental_local_results(found)[0].numpy()
        rows = rows[:: len(rows) // self.count]  # several devices of a worker have given the same
        rows = np.ascontiguousarray(rows.view(np.uint8)[:, : values.nbytes])
        return rows.view(values.dtype).reshape(self.count, *values.shape)

    @cached_property
    def _gathered(self) -> Callable[[Any], Any]:
        import tensorflow as tf

        def of_all(own):
            return tf.distribute.get_replica_context().all_gather(tf.identity(own), axis=0)

        @tf.function(autograph=False, reduce_retracing=True)
        def gathered(given):
            return self.strategy.run(of_all, args=(given,))

        return gathered

    def prepare(self, model: keras.Model) -> None:
        """Replaces two methods of this object that fail for several workers (keras#20585)."""
        import tensorflow as tf

        strategy, side = self.strategy, model.input_shape[1] or 32

        def _maybe_symbolic_build(iterator=None, data_batch=None):
            # Keras would reduce a whole batch over the workers, which it cannot: the shapes do.
            batch = (
                tf.zeros((1, side, side, model.input_shape[-1])),
                tf.zeros((1, model.output_shape[-1])),
            )
            with strategy.scope():
                return model._symbolic_build(data_batch=batch)

        def make_train_function(force=False):
            if model.train_function is not None and not force:
                return model.train_function

            @tf.function(autograph=False)
            def step(iterator):
                logs = strategy.run(model.train_step, args=(iterator.get_next(),))
                # Scalars: Keras would take a mean over their first axis.
                return {
                    name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()
                }

            model.train_function = step
            return step

        model._maybe_symbolic_build = _maybe_symbolic_build
        model.make_train_function = make_train_function

    def dataset(self, made: Any) -> Any:
        """Handed out as it is: Keras would divide the rows among the workers again."""
        import tensorflow as tf

        devices = self.strategy.num_replicas_in_sync // self.count
        if devices > 1:  # one share after another

            def shares(*batch):
                size = [devices, -1]
                return tuple(tf.reshape(x, tf.concat([size, tf.shape(x)[1:]], 0)) for x in batch)

            made = made.map(shares).flat_map(
                lambda *batch: tf.data.Dataset.from_tensor_slices(batch)
            )
        return self.strategy.distribute_datasets_from_function(lambda context: made)

    def predict(self, model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
        import tensorflow as tf

        forward = tf.function(lambda images: model(images, training=False), autograph=False)
        return lambda images: forward(tf.constant(images)).numpy()


class _JaxWorkers(Workers):
    """Those of `jax.distributed`, which `keras.distribution` shares a batch among."""

    def __init__(self) -> None:
        import jax

        super().__init__(jax.process_index(), jax.process_count())
        self.replicas_there = jax.device_count()

    @property
    def replicas(self) -> int:
        return self.replicas_there

    def local(self) -> contextlib.AbstractContextManager:
        return _no_distribution()

    def gather(self, values: np.ndarray) -> np.ndarray:
        from jax.experimental import multihost_utils

        values = np.ascontiguousarray(values)
        rows = multihost_utils.process_allgather(values.view(np.uint8).reshape(-1))
        return np.asarray(rows).reshape(-1).view(values.dtype).reshape(self.count, *values.shape)

    def predict(self, model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
        import jax

        @jax.jit
        def forward(trained, others, images):
            return model.stateless_call(trained, others, images, training=False)[0]

        def predicted(images: np.ndarray) -> np.ndarray:
            with _no_distribution():
                parts = model.trainable_variables, model.non_trainable_variables
                # A global array has all of itself on each device of this process.
                own = [[v.value.addressable_data(0) for v in variables] for variables in parts]
                return np.asarray(forward(*own, images))

        return predicted


@contextlib.contextmanager
def _no_distribution() -> Iterator[None]:
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def join(rank: int, addresses: Sequence[str]) -> Any:
    """Makes this process one of several workers; before TensorFlow or JAX has done anything.

    Waits for the others.

    Args:
        rank: Which it is, from 0.
        addresses: "HOST:PORT" of each, the first one's first, at which the others reach it. On JAX
            the first one's alone is used.

    Returns:
        The `strategy` for `train`, on TensorFlow; None on JAX, where Keras itself is told.

    Raises:
        ValueError: Keras runs on a backend that has no such workers.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        place = {
            "cluster": {"worker": list(addresses)},
            "task": {"type": "worker", "index": rank},
        }
        os.environ["TF_CONFIG"] = json.dumps(place)
        return tf.distribute.MultiWorkerMirroredStrategy()
    if backend == "jax":
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(addresses[0], len(addresses), rank)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=jax.devices(), auto_shard_dataset=False)
        )
        return None
    raise ValueError(
        f"several workers train on TensorFlow or JAX. Received: KERAS_BACKEND={backend}"
    )


def workers_of(strategy: Any = None) -> Workers:
    """The workers that this process is one of; one alone where nothing says otherwise.

    Args:
        strategy: Of `tf.distribute`, if there is one.
    """
    if strategy is not None:
        import tensorflow as tf

        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return _TensorFlowWorkers(strategy) if several else Workers(strategy=strategy)
    if keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            return _JaxWorkers()
    return Workers()
