"""Pictures as rows of a batch: what the model's own processor makes of them, on the CPU, always of one size.

On a GPU a batch of each of ROWS is a captured graph, made before the first request.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from woodfrog.engine import pictures
from woodfrog.engine.batches import ROWS, Batch, plan
from woodfrog.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.graphed import Graphs

BATCH_CPU = 4  # pictures; a second or so for a model of base size, after which other requests have their turn
Inputs = Mapping[str, Any]


class PictureRows:
    """A function of what the processor gives (`pixel_values=`), over pictures. Only the compute thread calls it."""

    def __init__(
        self,
        folder: Path,
        function: Callable[..., Any],
        dtype: torch.dtype,
        device: str,
        graphs: "Graphs | None",
    ) -> None:
        """`function` gives a tensor with one row for each picture. Raises InvalidArgument without one size of pictures."""
        self._processor = image_processor(folder)
        self._captured = graphs is not None
        self._function = graphs.of(function) if graphs is not None else function
        self._dtype = dtype
        self._device = device
        sizes = [
            {name: tuple(value.shape) for name, value in self._processed(picture).items()}
            for picture in (Image.new("RGB", (64, 64)), Image.new("RGB", (96, 40)))
        ]
        if sizes[0] != sizes[1]:
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"{folder}/preprocessor_config.json gives each picture a size of its own; this engine serves"
                " classifiers whose pictures all get one size",
            )

    def read(self, data_url: object, param: str) -> Inputs:
        """What the model computes with, one row of each. Raises InvalidArgument naming `param`."""
        return self._processed(pictures.decode(data_url, param))

    def batches(self, given: Sequence[Inputs]) -> list[Batch]:
        most = BATCH_CPU if self._device == "cpu" else ROWS[-1]
        return plan([1] * len(given), most, padded=self._captured)

    def __call__(self, given: Sequence[Inputs], batch: Batch) -> Any:
        """One row for each member of `batch`, in the host's memory."""
        padding = [given[batch.members[0]]] * (batch.rows - len(batch.members))
        members = [*(given[index] for index in batch.members), *padding]
        together = {
            name: torch.cat([member[name] for member in members]).to(self._device)
            for name in members[0]
        }
        rows = self._function(**together).cpu()[: len(batch.members)]
        if not rows.isfinite().all():
            raise Internal("NOT_FINITE", "the model's numbers overflowed at this picture")
        return rows

    def alone(self, given: Inputs) -> Any:
        """The row of one picture."""
        return self([given], Batch((0,), 1, 1))[0]

    def warm_up(self, given: Inputs) -> None:
        """Computes every shape that is captured."""
        for rows in reversed(ROWS) if self._captured else ROWS[:1]:
            self([given], Batch((0,), rows, 1))  # the largest first: the others find room in its

    def _processed(self, picture: Image.Image) -> Inputs:
        values = self._processor(images=picture, return_tensors="pt")
        return {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in values.items()
        }


def image_processor(folder: Path) -> Any:
    """Transformers' own, by Pillow, so the same on every machine; code in the folder is not run.

    Raises InvalidArgument.
    """
    try:
        return AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise InvalidArgument(
            "UNKNOWN_PROCESSOR",
            f"{folder} names no image processor that is installed: {said[0][:200]}; give the model's"
            " preprocessor_config.json",
        ) from None
