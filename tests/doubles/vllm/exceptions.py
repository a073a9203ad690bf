"""vLLM 0.32.0's errors: none is a RuntimeError or a ValueError."""


class VLLMError(Exception):
    pass


class VLLMValidationError(VLLMError):
    pass


class EngineDeadError(VLLMError):
    """What every failure inside the engine becomes."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")
