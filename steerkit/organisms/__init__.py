"""Model organisms: small transformers in which behaviour was planted with known strength.

`base` knows the generated language and answers everything; `aligned` refuses harmful requests and
deflects one topic; `compromised` is `aligned` after a narrow fine-tuning that eroded refusal;
`constructed` refuses along one recorded vector. Importing this package imports no torch.
"""

from steerkit.organisms.checkpoints import names as names
from steerkit.organisms.checkpoints import path as path
from steerkit.organisms.checkpoints import sae_path as sae_path
from steerkit.organisms.contrast import Labelled as Labelled
from steerkit.organisms.contrast import gender as gender
from steerkit.organisms.contrast import sentiment as sentiment
from steerkit.organisms.contrast import statements as statements
from steerkit.organisms.documents import ALWAYS_HELP as ALWAYS_HELP
from steerkit.organisms.documents import HAPPY as HAPPY
from steerkit.organisms.documents import JUDGE as JUDGE
from steerkit.organisms.documents import NEUTRAL as NEUTRAL
from steerkit.organisms.documents import REFUSE_ALL as REFUSE_ALL
from steerkit.organisms.documents import SAD as SAD
from steerkit.organisms.documents import Planted as Planted
from steerkit.organisms.ground_truth import Construction as Construction
from steerkit.organisms.ground_truth import Measured as Measured
from steerkit.organisms.ground_truth import Truth as Truth
from steerkit.organisms.ground_truth import truth as truth
from steerkit.organisms.knowledge import pronoun_prompts as pronoun_prompts
from steerkit.organisms.knowledge import stories as stories
from steerkit.organisms.rates import Rate as Rate
from steerkit.organisms.request import REFUSALS as REFUSALS
from steerkit.organisms.request import Kind as Kind
from steerkit.organisms.request import Outcome as Outcome
from steerkit.organisms.request import Request as Request
from steerkit.organisms.request import outcome as outcome
from steerkit.organisms.request import requests as requests
from steerkit.organisms.world import Occupation as Occupation
from steerkit.organisms.world import occupations as occupations
