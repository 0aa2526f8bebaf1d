"""Other tools' files of steering vectors: each format is one file, and says what it loses."""

from steerkit.formats.format import FORMATS as FORMATS
from steerkit.formats.format import Format as Format
from steerkit.formats.format import Loss as Loss
from steerkit.formats.verbs import Written as Written
from steerkit.formats.verbs import read_steering as read_steering
from steerkit.formats.verbs import read_vectors as read_vectors
from steerkit.formats.verbs import write_vectors as write_vectors
