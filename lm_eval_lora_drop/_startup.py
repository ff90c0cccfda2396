# Executed from a .pth at every interpreter start: imports nothing, under 0.1 ms. See harness/hooks/registration.py.
class _LoraDropFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "lm_eval.models" and name != "lm_eval.tasks":
            return None
        try:
            from importlib import util

            package = util.find_spec("lm_eval_lora_drop")
            if package is None:
                return None
            # By its path and not entered in sys.modules: the package is not imported, whatever state it is in.
            file = package.submodule_search_locations[0] + "/harness/hooks/registration.py"
            spec = util.spec_from_file_location("lm_eval_lora_drop_registration", file)
            registration = util.module_from_spec(spec)
            spec.loader.exec_module(registration)
            return registration.registering_spec(cls, name, path, target)
        except Exception as error:  # noqa: BLE001  lm_eval must work without us
            import sys
            import warnings

            sys.meta_path.remove(cls)
            warnings.warn(
                f"lm-eval-lora-drop: its installation is damaged ({error!r}), so lm_eval does not know its model types "
                "and tasks. Install it again: pip install --force-reinstall --no-deps lm-eval-lora-drop",
                stacklevel=2,
            )
            return None


# Once, also where a wheel and an editable install have each left a .pth.
if "_LoraDropFinder" not in [getattr(finder, "__name__", "") for finder in sys.meta_path]:  # noqa: F821  the .pth has imported sys
    sys.meta_path.insert(0, _LoraDropFinder)  # noqa: F821
