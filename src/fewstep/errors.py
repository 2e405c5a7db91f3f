"""Every error a person may meet, drawn as one tree.

    FewstepError
    ├── RequestError      a parameter is out of range or contradicts another
    ├── CheckpointError   a model file is missing, damaged, unsafe or of another kind
    │   ├── LoraError     the same of a LoRA
    │   └── GraphError    a network that no graph knows; PyTorch runs it
    ├── ImageError        a picture cannot be read
    ├── OutputError       a file cannot be written
    ├── DeviceError       a device or number format is not there
    ├── RecipeError       a recipe or data set is unusable
    └── QualityError      a training run ended, and its result is not good enough to ship

A message says what was asked, what was found and what to do, in one sentence or two.
"""


class FewstepError(Exception):
    """The root: shown as one line at the command line, as JSON at the HTTP door."""

    exit_code = 2
    http_status = 400


class RequestError(FewstepError):
    """A parameter is out of range or contradicts another."""


class CheckpointError(FewstepError):
    """A model file is missing, damaged, unsafe or of another kind."""


class LoraError(CheckpointError):
    """A LoRA file is damaged, or made for another family."""


class GraphError(CheckpointError):
    """A model is sound, but it has a network that no graph knows; PyTorch runs it."""


class ImageError(FewstepError):
    """A picture cannot be read."""


class OutputError(FewstepError):
    """A file cannot be written."""


class DeviceError(FewstepError):
    """A device or number format is not there."""


class RecipeError(FewstepError):
    """A recipe or data set is unusable."""


class QualityError(FewstepError):
    """A training run ended, and its result is not good enough to ship."""

    exit_code = 3
