# Executed from a .pth at every interpreter start: no imports, no class that is not needed, under 0.1 ms. See plugin.py.
class _LoraDropFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lm_eval.models" or name == "lm_eval.tasks" or name == "lm_eval._cli.run":
            try:
                from lm_eval_lora_drop.harness.hooks.plugin import registering_spec
            except ImportError:
                return None
            return registering_spec(name, path, target)
        return None


# Once, also where a wheel and an editable install have each left a .pth.
if "_LoraDropFinder" not in [getattr(finder, "__name__", "") for finder in sys.meta_path]:  # noqa: F821  the .pth has imported sys
    sys.meta_path.insert(0, _LoraDropFinder)  # noqa: F821
