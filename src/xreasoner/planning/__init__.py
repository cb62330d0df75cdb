"""What a recipe needs before it is run: memory, tokens, FLOPs, hours and cost, and what would not run.

Parameters are counted on the meta device, so they are exact (`shape`). Memory follows the trainer, phase by phase
(`memory`); measured resident memory agrees within 10 % (`make plan-check`). Time is FLOPs and bytes over the data
sheet's rates times a utilization (`machine`, `work`), and therefore an estimate; `published` has it beside others'
runs. `advice` says why a stage cannot run and what makes it run.
"""

from xreasoner.planning.advice import check_recipe
from xreasoner.planning.machine import GPUS, Machine
from xreasoner.planning.plan import StagePlan, plan, plan_stage
from xreasoner.planning.report import told
from xreasoner.planning.shape import PUBLIC, Shape, shape

__all__ = ["GPUS", "PUBLIC", "Machine", "Shape", "StagePlan", "check_recipe", "plan", "plan_stage", "shape", "told"]
