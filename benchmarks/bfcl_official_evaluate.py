"""The official `bfcl evaluate` without its table of models: results of a model `plain` in, score files out.

    BFCL_PROJECT_ROOT=DIR python benchmarks/bfcl_official_evaluate.py CATEGORY …

`DIR/result/plain/…/BFCL_v4_CATEGORY_result.json` holds the answers, `DIR/score` gets the scores. Needs the environment
of `bfcl_official_worker.py` and

    pip install pandas numpy==1.26.4 tqdm python-dotenv mpmath==1.3.0 requests overrides

The table of models imports every vendor's SDK, which takes time when the real command starts; here it has one model,
whose answers are decoded as those of any prompted model. So a user of the package waits longer than this.
"""

import sys
import types


class _Config:
    """What the evaluation and its tables read of a model."""

    def __init__(self, handler):
        self.model_handler = handler
        self.model_name = self.display_name = self.url = self.org = self.license = "plain"
        self.is_fc_model = self.underscore_to_dot = False
        self.input_price = self.output_price = None


table = types.ModuleType("bfcl_eval.constants.model_config")
table.MODEL_CONFIG_MAPPING = {}
sys.modules[table.__name__] = table

from bfcl_eval.eval_checker import eval_runner  # noqa: E402
from bfcl_eval.model_handler.base_handler import BaseHandler  # noqa: E402
from bfcl_eval.model_handler.utils import default_decode_ast_prompting  # noqa: E402


class _Prompted(BaseHandler):
    """A model that is asked in words."""

    def decode_ast(self, result, language, has_tool_call_tag):
        return default_decode_ast_prompting(result, language, has_tool_call_tag)


table.MODEL_CONFIG_MAPPING["plain"] = _Config(_Prompted)

eval_runner.main(["plain"], sys.argv[1:], None, None)
