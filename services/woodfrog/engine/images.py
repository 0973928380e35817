"""Images from text, by any pipeline of Diffusers whose parts are in the folder (Stable Diffusion XL and its like).

All of a pipeline's models run from the weights where they lie: mapped files on a CPU, shared memory on a GPU. On a GPU each
model's forward pass is a captured graph, for images of the pipeline's own size.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from woodfrog.engine.brief import ranks
from woodfrog.engine.drawing import Drawing
from woodfrog.engine.module_engine import ModuleEngine, Stop
from woodfrog.errors import InvalidArgument
from woodfrog.replica.weights import private_tensors, stand_ins, take_out

CANARY_TEXT = "a frog that freezes in winter"
PROBE_STEPS = 1
_BINS = 64
_SAMPLE_SIZE = 128
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class ImagesEngine(ModuleEngine):
    pipeline: Any

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pipeline's own images."""
        sample = getattr(self._denoiser.config, "sample_size", None)
        if not isinstance(sample, int):
            sample = getattr(self.pipeline, "default_sample_size", _SAMPLE_SIZE)
        side = int(sample or _SAMPLE_SIZE) * int(self.pipeline.vae_scale_factor)
        return side, side

    def build(self) -> None:
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        self._versions["diffusers"] = diffusers.__version__
        folder = self.settings.model
        index = json.loads((folder / "model_index.json").read_text())
        kind = getattr(diffusers, str(index.get("_class_name")), None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
            raise _unknown(folder, str(index.get("_class_name")))
        optional = set(getattr(kind, "_optional_components", ()))
        parts = {
            name: entry and self._part(name, entry)
            for name, entry in _parts(index, optional).items()
        }
        options = {name: value for name, value in index.items() if _is_option(name, value)}
        self.pipeline = kind(**parts, **options)
        self.pipeline.set_progress_bar_config(disable=True)
        self._replace_forwards()

    def warm_up(self) -> None:
        self.draw(Drawing(CANARY_TEXT, self.size, steps=2, seed=0), Stop())

    def probe(self) -> dict[str, Any]:
        body = {
            "model": self.settings.model_name,
            "prompt": CANARY_TEXT,
            "num_inference_steps": PROBE_STEPS,
        }
        return {"path": "/v1/images/generations", "body": body}

    def full_canary(self) -> list[int]:
        """One step and the decoding of it."""
        image = self._run(Drawing(CANARY_TEXT, self.size, steps=1, seed=0), Stop(), "pt")
        return ranks(_pooled(image))

    def brief(self) -> list[int]:
        """The text encoders: a few milliseconds, where a step takes many."""
        found: list[int] = []
        for name in ("text_encoder", "text_encoder_2"):
            model = getattr(self.pipeline, name, None)
            if model is not None:
                length = min(16, int(getattr(model.config, "max_position_embeddings", 16)))
                ids = torch.arange(1, 1 + length, device=model.device)[None]
                found += ranks(_pooled(model(ids)[0]))
        return found

    def draw(self, drawing: Drawing, stop: Stop) -> Any:
        """A PIL image, or None when it was stopped. Blocks for seconds; in the compute thread."""
        try:
            return self._run(drawing, stop, "pil")[0]
        except _Stopped:
            return None

    @property
    def _denoiser(self) -> Any:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    def _run(self, drawing: Drawing, stop: Stop, output: str) -> Any:
        width, height = drawing.size
        seed = random.getrandbits(63) if drawing.seed is None else drawing.seed
        options: dict[str, Any] = {"num_inference_steps": drawing.steps}
        if drawing.guidance is not None:
            options["guidance_scale"] = drawing.guidance
        if drawing.negative:
            options["negative_prompt"] = drawing.negative

        def after_step(pipeline: Any, step: int, time: Any, values: dict[str, Any]) -> Any:
            if stop.asked:
                raise _Stopped
            return values

        if stop.asked:
            raise _Stopped
        try:
            return self.pipeline(
                prompt=drawing.prompt,
                width=width,
                height=height,
                generator=torch.Generator().manual_seed(seed),  # the same noise on every device
                callback_on_step_end=after_step,
                output_type=output,
                **options,
            ).images
        except (ValueError, TypeError) as error:  # its own checks of what it was given
            said = str(error).strip().splitlines() or ["no reason given"]
            raise InvalidArgument(
                "INVALID_VALUE", f"the model's pipeline refuses this: {said[0][:300]}"
            ) from None

    def _part(self, name: str, entry: tuple[str, str]) -> Any:
        """One component of the pipeline from its folder."""
        import diffusers
        import transformers

        library, class_name = entry
        kind = getattr(
            {"diffusers": diffusers, "transformers": transformers}[library], class_name, None
        )
        folder = self.settings.model / name
        taken = (
            diffusers.ModelMixin,
            diffusers.SchedulerMixin,
            transformers.PreTrainedModel,
            transformers.PreTrainedTokenizerBase,
            transformers.FeatureExtractionMixin,
            transformers.ImageProcessingMixin,
        )  # nothing that loads parts of its own: a folder must not choose what is imported
        if not (isinstance(kind, type) and issubclass(kind, taken)):
            raise _unknown(self.settings.model, class_name)
        if issubclass(kind, diffusers.ModelMixin):
            return self._of_diffusers(kind, folder)
        if issubclass(kind, transformers.PreTrainedModel):
            return self._of_transformers(kind, folder)
        return kind.from_pretrained(folder, local_files_only=True)

    def _of_diffusers(self, kind: Any, folder: Path) -> Any:
        from accelerate import init_empty_weights

        tensors = self._tensors_of(folder)
        with init_empty_weights(include_buffers=False):
            model = kind.from_config(kind.load_config(folder, local_files_only=True))
        model.to(_dtype(tensors))
        take_out(model, tensors)
        return self._placed(model)

    def _of_transformers(self, kind: Any, folder: Path) -> Any:
        tensors = self._tensors_of(folder)
        hollow = stand_ins(tensors)
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        model = kind.from_pretrained(None, config=config, state_dict=hollow, dtype=_dtype(tensors))
        take_out(model, tensors, hollow)
        return self._placed(model)

    def _placed(self, model: Any) -> Any:
        model.eval().requires_grad_(False)
        model.to(self.device)  # buffers that no file has
        if self.shared is not None and (own := private_tensors(model, self.shared)):
            raise InvalidArgument(
                "WEIGHTS_PRIVATE", f"{type(model).__name__} keeps tensors of its own: {own}"
            )
        return model

    def _tensors_of(self, folder: Path) -> dict[str, Any]:
        if self.shared is not None:
            return self.tensors(f"{folder.name}/")
        from safetensors.torch import load_file

        return {
            k: v
            for path in sorted(folder.glob("*.safetensors"))
            for k, v in load_file(path).items()
        }

    def _replace_forwards(self) -> None:
        """By captured graphs on a GPU; and the decoder by one that computes in float32 where it must.

        A decoder that overflows in half precision says so in its config; Diffusers would convert its weights in place.
        """
        vae = self.pipeline.vae
        wide = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
        vae.register_to_config(force_upcast=False)
        decode = _decoder(vae, wide)
        if self.graphs is not None:
            decode = self.graphs.of(decode)
            for name in ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
                model = getattr(self.pipeline, name, None)
                if model is not None:
                    model.forward = self.graphs.of(model.forward)
        vae.decode = lambda latents, return_dict=True, generator=None: _sample(
            decode(latents), return_dict
        )


class _Stopped(Exception):
    """Nobody wants the drawing any more."""


class _Decode(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.inner = vae.decode

    def forward(self, latents: Any) -> Any:
        return self.inner(latents, return_dict=False)[0]


def _decoder(vae: Any, wide: bool) -> Callable[[Any], Any]:
    """Latents → image; in float32 with weights that are converted on the way, and kept nowhere."""
    module = _Decode(vae)

    def decode(latents: Any) -> Any:
        if not wide:
            return module(latents)
        parameters = {name: value.float() for name, value in module.named_parameters()}
        decoded = torch.func.functional_call(module, parameters, (latents.float(),))
        return decoded.to(latents.dtype)

    return decode


def _sample(image: Any, return_dict: bool) -> Any:
    if not return_dict:
        return (image,)
    from diffusers.models.autoencoders.vae import DecoderOutput

    return DecoderOutput(sample=image)


def _parts(index: dict[str, Any], optional: set[str]) -> dict[str, tuple[str, str] | None]:
    """Name → library and class, or None for a part that is left out. Raises InvalidArgument for code of other libraries."""
    found: dict[str, tuple[str, str] | None] = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2:
            continue
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE", f"model_index.json: {name[:80]!r} is no name of a part"
            )
        library, class_name = entry
        if library is None:
            found[name] = None
        elif library in ("diffusers", "transformers"):
            found[name] = (library, str(class_name))
        elif name in optional:  # a safety checker, most likely, which was code beside the pipeline
            found[name] = None
        else:
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"model_index.json: {name} is code of {library}; only diffusers and transformers are run",
            )
    return found


def _is_option(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, list)


def _dtype(tensors: dict[str, Any]) -> Any:
    return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)


def _pooled(values: Any) -> Any:
    """Few numbers that all of an image has its part in."""
    flat = values.detach().float().cpu().flatten()[None]
    return torch.nn.functional.adaptive_avg_pool1d(flat, _BINS)


def _unknown(folder: Path, name: str) -> InvalidArgument:
    return InvalidArgument(
        "UNKNOWN_ARCHITECTURE",
        f"{folder}/model_index.json names {name}, which the installed libraries do not have",
    )
