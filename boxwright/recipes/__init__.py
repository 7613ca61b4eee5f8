"""Recipes: functions that return the `fiddle.Config` of an `Experiment`, listed here by name."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import BoxwrightError, ConfigError

if TYPE_CHECKING:
    from fiddle import Config

    from .experiment import Experiment

    Recipe = Callable[[], Config[Experiment]]


def table() -> dict[str, Recipe]:
    """Every recipe by name. The only place where a name stands for a function."""
    from . import (
        atss,
        c4,
        cascade_rcnn,
        dcn,
        demo,
        dynamic_rcnn,
        faster_rcnn,
        fcos,
        gcnet,
        gfl,
        group_norm,
        guided_anchoring,
        hrnet,
        htc,
        mask_rcnn,
        megdet,
        ohem,
        retinanet,
        rfcn,
        rpn,
        soft_nms,
        ssd,
        yolov3,
    )

    functions = (
        retinanet.retinanet_r50_fpn_1x,
        retinanet.retinanet_r50_fpn_2x,
        retinanet.retinanet_r101_fpn_1x,
        retinanet.retinanet_x101_64x4d_fpn_1x,
        retinanet.retinanet_mnv2_320,
        fcos.fcos_r50_fpn_1x,
        fcos.fcos_r50_fpn_2x,
        fcos.fcos_r101_fpn_1x,
        fcos.fcos_mnv2_320,
        atss.atss_r50_fpn_1x,
        atss.atss_r101_fpn_1x,
        atss.atss_mnv2_320,
        gfl.gfl_r50_fpn_1x,
        gfl.gfl_r50_fpn_2x,
        gfl.gfl_r101_fpn_2x,
        gfl.gfl_x101_32x4d_fpn_2x,
        gfl.gfl_mnv2_320,
        faster_rcnn.faster_rcnn_r50_fpn_1x,
        faster_rcnn.faster_rcnn_r50_fpn_2x,
        faster_rcnn.faster_rcnn_r101_fpn_1x,
        faster_rcnn.faster_rcnn_x101_32x4d_fpn_1x,
        faster_rcnn.faster_rcnn_x101_64x4d_fpn_1x,
        faster_rcnn.faster_rcnn_mnv2_320,
        megdet.faster_rcnn_r50_fpn_megdet_b256,
        megdet.faster_rcnn_r50_fpn_megdet_b256_long,
        ohem.faster_rcnn_r50_fpn_ohem_1x,
        ohem.faster_rcnn_ohem_mnv2_320,
        soft_nms.faster_rcnn_r50_fpn_soft_nms_1x,
        soft_nms.faster_rcnn_soft_nms_mnv2_320,
        rfcn.rfcn_r101_1x,
        rfcn.rfcn_r50_1x,
        rfcn.rfcn_mnv2_320,
        mask_rcnn.mask_rcnn_r50_fpn_1x,
        mask_rcnn.mask_rcnn_r50_fpn_2x,
        mask_rcnn.mask_rcnn_r101_fpn_1x,
        mask_rcnn.mask_rcnn_x101_32x4d_fpn_1x,
        mask_rcnn.mask_rcnn_x101_64x4d_fpn_1x,
        mask_rcnn.mask_rcnn_mnv2_320,
        cascade_rcnn.cascade_rcnn_r50_fpn_1x,
        cascade_rcnn.cascade_rcnn_r101_fpn_1x,
        cascade_rcnn.cascade_rcnn_mnv2_320,
        cascade_rcnn.cascade_mask_rcnn_r50_fpn_1x,
        cascade_rcnn.cascade_mask_rcnn_r101_fpn_1x,
        cascade_rcnn.cascade_mask_rcnn_x101_64x4d_fpn_1x,
        cascade_rcnn.cascade_mask_rcnn_mnv2_320,
        htc.htc_without_semantic_r50_fpn_1x,
        htc.htc_r50_fpn_1x,
        htc.htc_r50_fpn_20e,
        htc.htc_r101_fpn_20e,
        htc.htc_without_semantic_mnv2_320,
        dynamic_rcnn.dynamic_rcnn_r50_fpn_1x,
        dynamic_rcnn.dynamic_rcnn_r50_fpn_dla_1x,
        dynamic_rcnn.dynamic_rcnn_r50_fpn_dsl_1x,
        dynamic_rcnn.dynamic_mask_rcnn_r50_fpn_1x,
        dynamic_rcnn.dynamic_rcnn_mnv2_320,
        dynamic_rcnn.dynamic_rcnn_dla_mnv2_320,
        dynamic_rcnn.dynamic_rcnn_dsl_mnv2_320,
        c4.faster_rcnn_r50_c4_1x,
        c4.faster_rcnn_r50_caffe_c4_1x,
        c4.faster_rcnn_r50_caffe_dc5_1x,
        c4.faster_rcnn_c4_mnv2_320,
        c4.mask_rcnn_r50_c4_1x,
        c4.mask_rcnn_r50_caffe_c4_1x,
        ssd.ssd300,
        ssd.ssd512,
        ssd.ssd_mnv2_320,
        yolov3.yolov3_d53_320,
        yolov3.yolov3_d53_416,
        yolov3.yolov3_d53_608,
        yolov3.yolov3_mnv2_320,
        dcn.faster_rcnn_r50_fpn_dconv_c3_c5_1x,
        dcn.faster_rcnn_r50_fpn_mdconv_c3_c5_1x,
        dcn.faster_rcnn_r50_fpn_mdconv_c3_c5_group4_1x,
        dcn.faster_rcnn_r101_fpn_dconv_c3_c5_1x,
        dcn.mask_rcnn_r50_fpn_dconv_c3_c5_1x,
        dcn.mask_rcnn_r50_fpn_mdconv_c3_c5_1x,
        dcn.faster_rcnn_mdconv_mnv2_320,
        gcnet.mask_rcnn_r50_fpn_gcb_r16_c3_c5_1x,
        gcnet.mask_rcnn_r50_fpn_gcb_r4_c3_c5_1x,
        gcnet.mask_rcnn_r101_fpn_gcb_r16_c3_c5_1x,
        gcnet.mask_rcnn_r50_syncbn_fpn_gcb_r16_c3_c5_1x,
        gcnet.mask_rcnn_r50_syncbn_fpn_gcb_r4_c3_c5_1x,
        gcnet.faster_rcnn_gcb_mnv2_320,
        group_norm.faster_rcnn_r50_fpn_gn_ws_1x,
        group_norm.mask_rcnn_r50_fpn_gn_2x,
        group_norm.mask_rcnn_r50_fpn_gn_ws_2x,
        group_norm.faster_rcnn_gn_ws_mnv2_320,
        hrnet.faster_rcnn_hrnetv2p_w18_1x,
        hrnet.faster_rcnn_hrnetv2p_w18_2x,
        hrnet.faster_rcnn_hrnetv2p_w32_1x,
        hrnet.faster_rcnn_hrnetv2p_w40_1x,
        hrnet.mask_rcnn_hrnetv2p_w18_1x,
        hrnet.mask_rcnn_hrnetv2p_w32_1x,
        hrnet.faster_rcnn_hrnetv2p_small_320,
        rpn.rpn_r50_fpn_1x,
        guided_anchoring.ga_retinanet_r50_fpn_1x,
        guided_anchoring.ga_retinanet_mnv2_320,
        guided_anchoring.ga_rpn_r50_fpn_1x,
        guided_anchoring.ga_faster_rcnn_r50_fpn_1x,
        guided_anchoring.ga_faster_rcnn_mnv2_320,
        demo.fcos_digits,
    )
    return {function.__name__: function for function in functions}


def recipes() -> dict[str, str]:
    """Names of all recipes, each with one line that says what it is."""
    return {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in table().items()}


def recipe(name: str) -> Config[Experiment]:
    """A fresh, editable description of an experiment.

    Args:
        name: a name that `recipes()` lists, or `path/to/file.py:function` for a recipe of your own. The
            file is run as Python code.

    Raises:
        ConfigError: there is no such recipe (the nearest names are given), or the function does not return a
            `fiddle.Config`.
    """
    path, colon, function_name = name.rpartition(":")
    if name.endswith(".py") or (colon and path.endswith(".py")):
        function = _from_file(Path(path if colon else name), function_name if colon else "recipe")
    else:
        known = table()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            near = near or [other for other in known if name.lower().replace("-", "_") in other][-3:]
            some = f"the recipes are: {', '.join(list(known)[:4])}, ... (`boxwright recipes` lists all)."
            hint = f"did you mean {' or '.join(near)}?" if near else some
            raise ConfigError(f"no recipe {name!r}; {hint} A recipe of your own is given as file.py:function")
        function = known[name]
    config = function()
    from fiddle import Config

    if not isinstance(config, Config):
        raise ConfigError(
            f"recipe {name!r} returned {type(config).__name__}, not a fiddle.Config of an Experiment"
        )
    return config


def _from_file(path: Path, function: str) -> Recipe:
    """A recipe function of a user's file, which becomes importable under the file's name."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a recipe of your own is given as file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve():
        raise ConfigError(
            f"{path}: a module named {path.stem!r} is loaded already; give the file another name"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that what it defines can be named in a run's configuration
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ConfigError(f"{path}: running it failed with {_told(error, path)}") from error
    if not callable(getattr(module, function, None)):
        functions = [
            n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == path.stem
        ]
        raise ConfigError(f"{path} has no function {function!r}; it has: {', '.join(functions) or 'none'}")

    def recipe() -> Config[Experiment]:
        try:
            return getattr(module, function)()
        except BoxwrightError as error:
            error.add_note(f"in {function} of {path}")
            raise
        except Exception as error:
            raise ConfigError(f"{path}: {function} failed with {_told(error, path)}") from error

    return recipe


def _told(error: Exception, path: Path) -> str:
    """An error of a user's file, with its last line there."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{type(error).__name__}: {error}{f' (line {lines[-1]})' if lines else ''}"


class _Recipes(ModuleType):
    """This package, callable: `boxwright.recipes` is a package to Python and a question to a user."""

    def __call__(self) -> dict[str, str]:
        """The same as `recipes.recipes()`."""
        return recipes()


sys.modules[__name__].__class__ = _Recipes
