"""The commands that turn a run into files: `erase export`, and `erase apply` for its patch."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from erase.cli_load import CacheDir, Device, ModelConfig, Revision, Variant, given
from erase.quiet import quiet_libraries
from erase.terminal import enough_memory

LESS_FOR_WRITING = "give --device cpu, or end other programs"
Dtype = Literal["float32", "float16", "bfloat16"]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def apply(
    patches: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN|PATCH...", help="Folders of one or more runs, or their patches.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Model to apply them to: the base they were made from. Default: emoji.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="0 is the base, 1 the erased model, at most 1.5; one for all patches or one for each. Default: 1."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write. Default: patched, or patched.safetensors for a single file.")
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write one .safetensors file for ComfyUI and A1111 instead of a folder.")
    ] = False,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Dtype of the written weights. Default: float32.")] = None,
    onto_other_base: Annotated[
        bool,
        typer.Option(
            "--onto-other-base",
            help="Allow another fine-tune of the same architecture; the patch's differences are added to it.",
        ),
    ] = False,
    patch_base: Annotated[
        str | None,
        typer.Option(
            "--patch-base", help="With --onto-other-base: the base of the patches, if they do not contain its values."
        ),
    ] = None,
    undo: Annotated[
        Path | None, typer.Option("--undo", help="A model written by this command: restore its base, bit for bit.")
    ] = None,
    device: Device = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Apply one or more patches to their base at any strength, or undo this (--undo)."""
    quiet_libraries()
    if undo is not None:
        others: dict[str, Any] = {"the patches": patches, "--to": to, "--strength": strength, "--single-file": single_file}
        others |= {"--dtype": dtype, "--onto-other-base": onto_other_base, "--patch-base": patch_base}
        _refuse_beside_undo(others | {"--variant": variant, "--revision": revision, "--cache-dir": cache_dir})
        from erase.apply import undo_patches

        with enough_memory(LESS_FOR_WRITING):
            result = undo_patches(undo, out, given(device=device, config=model_config))
        text = f"{result['out']}: the base again, bit for bit (weights {result['weights_sha256'][:12]})"
    else:
        if not patches:
            raise ValueError("there is no patch to apply; give a run's folder, or its patch.safetensors.")
        if patch_base and not onto_other_base:
            raise ValueError("--patch-base needs --onto-other-base: a patch applied to its own base needs no other.")
        out = out or Path("patched.safetensors" if single_file else "patched")
        _check_output(out, single_file)
        strengths = _strengths(strength or [1.0], patches)
        from erase.apply import apply_patches, patch_in

        paths, dtype = [patch_in(path) for path in patches], dtype or "float32"
        onto: dict[str, Any] = {"onto_other_base": onto_other_base, "patch_base": patch_base}
        onto["given"] = given(device=device, variant=variant, revision=revision, cache_dir=cache_dir, config=model_config)
        with enough_memory(LESS_FOR_WRITING):
            result = apply_patches(paths, strengths, to, out, dtype=dtype, **onto)
        text = describe(result)
    typer.echo(json.dumps(result) if as_json else text)


def export(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, or any model.")],
    to: Annotated[
        Literal["single-file", "diffusers", "patch"] | None,
        typer.Option("--to", help="Format to write; `patch` needs a run."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Dtype of the weights that --to writes; uploads are always float32. Default: float32."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File or folder that --to writes.")] = None,
    with_originals: Annotated[
        bool,
        typer.Option(
            "--with-originals", help="Include the base's values in the patch, so that it can be applied to other bases."
        ),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the run: pipeline, model card, patch and evidence."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the uploaded repository private.")] = False,
    device: Device = None,
    variant: Variant = None,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Write a run's erased model, or any model, in another format; or upload a run."""
    quiet_libraries()
    from erase.folder import is_run

    run = Path(source) if is_run(Path(source)) else None
    if to is None and push_to_hub is None:
        raise ValueError("nothing to do: give --to single-file, --to diffusers, --to patch, or --push-to-hub OWNER/NAME.")
    if run is None and (to == "patch" or push_to_hub):
        _refuse_model(source, to)
    if run is not None and not with_originals and (variant or revision or cache_dir or model_config):
        raise ValueError(
            "--variant, --revision, --cache-dir and --model-config apply to a model or to a run's base; here no base is loaded."
        )
    _refuse_idle(to, push_to_hub, {"--out": out, "--dtype": dtype}, with_originals=with_originals, private=private)
    result: dict[str, Any] = {"source": source}
    if to is not None:
        if out is None:
            raise ValueError("give --out: where to write it.")
        _check_output(out, to != "diffusers")
        from erase.export import write_export

        dtype = dtype or "float32"
        told = given(device=device, variant=variant, revision=revision, cache_dir=cache_dir, config=model_config)
        with enough_memory(LESS_FOR_WRITING):
            write_export(source, run, to, out, dtype=dtype, with_originals=with_originals, given=told)
        size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
        result |= {"to": to, "dtype": dtype, "out": str(out), "bytes": size}
    if push_to_hub is not None:
        from erase.hub import push
        from erase.terminal import Bars

        assert run is not None
        result["url"] = push(run, push_to_hub, private=private, note=Bars().note)
    said = [f"{out}: {to} of {source} in {dtype}, {result['bytes'] / 1e9:.3f} GB"] if to else []
    said += [f"uploaded: {result['url']}"] if push_to_hub else []
    typer.echo(json.dumps(result) if as_json else "\n".join(said))


def _refuse_beside_undo(others: dict[str, Any]) -> None:
    if named := [name for name, value in others.items() if value]:
        raise ValueError(f"--undo takes only the model, and --out for its base: leave out {', '.join(named)}.")


def _refuse_idle(
    to: str | None, push_to_hub: str | None, written: dict[str, Any], *, with_originals: bool, private: bool
) -> None:
    """Raise ValueError for an option of `export` that would do nothing; `written`: those of what --to writes."""
    if with_originals and to != "patch":
        raise ValueError("--with-originals needs --to patch.")
    if to is None and (named := [name for name, value in written.items() if value]):
        raise ValueError(f"{named[0]} needs --to: an upload is the run unchanged, in float32.")
    if private and push_to_hub is None:
        raise ValueError("--private needs --push-to-hub: nothing else is uploaded.")


def _refuse_model(source: str, to: str | None) -> None:
    """Raise ValueError: what is wanted, only a run's folder has."""
    there = "is not a run's folder" if Path(source).exists() else "is not a folder"
    use = "a patch is what a run changed" if to == "patch" else "--push-to-hub uploads a run"
    raise ValueError(f"{source} {there}; {use}.")


def _check_output(out: Path, is_file: bool) -> None:
    from erase.files import require_new

    require_new(out)
    if is_file != (out.suffix == ".safetensors"):
        wanted = "a file that ends in .safetensors" if is_file else "a folder (no .safetensors)"
        raise ValueError(f"--out {out} has the wrong ending: give {wanted}.")


def _strengths(given: list[float], patches: list[Path]) -> list[float]:
    if len(given) not in (1, len(patches)):
        raise ValueError(f"there are {len(given)} strengths for {len(patches)} patches: give one for all, or one for each.")
    for strength in given:
        if not 0 <= strength <= 1.5:
            raise ValueError(f"strength is {strength}; it must be between 0 and 1.5.")
    return given * len(patches) if len(given) == 1 else given


def describe(result: dict[str, Any]) -> str:
    """What `erase apply` did, and what a change of base means."""
    put = ", ".join(f"{entry['concept']!r} at strength {entry['strength']:g}" for entry in result["patches"])
    moved = [
        f"not the base that {report['patch']} was made on: the two differ in {100 * report['different']:.1f} % of its "
        f"{report['num_weights']:,} weights, by {report['distance']:.2f} x the distance that the patch moves them; its "
        "differences were added. Untested on this base: run `erase eval`"
        for report in result["other_base"]
    ]
    said = [f"{result['out']}: {result['model']} without {put}", *moved, f"undo: erase apply --undo {result['out']}"]
    return "\n".join(said)
