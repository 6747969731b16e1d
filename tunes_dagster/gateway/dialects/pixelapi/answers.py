"""What PixelAPI's endpoints answer, for the documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunes_dagster.gateway.answers import Address, Answer, Moment


class Price(Answer):
    """A price of the list."""

    credits: float
    usd: float
    per: str | None = None


class Config(Answer):
    """Prices, models and limits."""

    service: str
    pricing: dict[str, Price]
    models: list[str]
    max_training_images: int
    min_training_images: int


class TrainAnswer(Answer):
    """A job that waits for its pictures."""

    job_id: str
    status: Literal["awaiting_images"]
    model: str
    estimated_time_seconds: int
    credits_cost: float
    credits_remaining: float
    upload_url: str = Field(description="Where its pictures go, below this server's address.")


class UploadAnswer(Answer):
    """A job that has its pictures."""

    status: Literal["queued"]
    job_id: str
    images_uploaded: int
    message: str


class TrainingStatus(Answer):
    """How far a training job is."""

    job_id: str
    status: Literal["awaiting_images", "queued", "training", "completed", "failed"]
    progress: float = Field(description="Percent, over all phases; never falls.")
    created_at: Moment
    completed_at: Moment | None
    tune_id: str | None = Field(default=None, description="The model (`lora_…`), once completed.")
    error: str | None = Field(default=None, description="Why it failed.")
    phase: str | None = None
    message: str | None = None


class RenderStatus(Answer):
    """How far a render job is, with its pictures."""

    job_id: str
    status: Literal["queued", "processing", "completed", "failed", "blocked"]
    progress: float = Field(description="Percent; never falls.")
    created_at: Moment
    completed_at: Moment | None
    images: list[Address]
    output_url: Address | None
    output_urls: list[Address]
    error: str | None = None


class InferAnswer(Answer):
    """A render job that was accepted; the size when it is not the one asked for."""

    job_id: str
    status: Literal["queued"]
    credits_cost: float
    credits_remaining: float
    width: int | None = None
    height: int | None = None


class TrainedModel(Answer):
    """A trained model."""

    tune_id: str
    trigger_word: str
    base_model: str
    status: str
    created_at: Moment
    file_size_mb: float


class Deleted(Answer):
    """What is gone."""

    status: Literal["deleted"]
    tune_id: str


class GenerateAnswer(Answer):
    """A picture that was accepted; the size when it is not the one asked for."""

    generation_id: str
    status: str
    model: str
    credits_used: float
    width: int | None = None
    height: int | None = None


class Generation(Answer):
    """A picture."""

    id: str
    status: str
    output_url: Address | None = Field(description="It is gone after 24 hours.")
    model: str | None
    credits_used: float
    created_at: Moment
    completed_at: Moment | None


class GenerationStatus(Generation):
    """A picture, and why it failed; some under two names, since the vendor's own clients differ."""

    generation_id: str
    progress: float = Field(description="Percent; never falls. Not in the vendor's own answers.")
    error: str | None
    error_message: str | None


class BatchAnswer(Answer):
    """Pictures that were accepted together."""

    batch_id: str
    status: str
    total: int
    credits_used: float


class BatchStatus(Answer):
    """How far a batch is; its pictures once none is open."""

    batch_id: str
    status: str
    total: int
    completed: int
    results: list[GenerationStatus]
    error: str | None


class UsedGeneration(Generation):
    """A picture with its prompt."""

    prompt: str


class Capabilities(Answer):
    """Ranges of a model."""

    steps: list[int]
    width: list[int]
    height: list[int]


class ImageModel(Answer):
    """A model for pictures."""

    id: str
    type: str
    credits: float
    capabilities: Capabilities
    status: Literal["available", "unavailable"]


class ImageModels(Answer):
    """The models for pictures."""

    models: list[ImageModel]


class Balance(Answer):
    """What can be spent."""

    credits_remaining: float
    plan: str
    email: str


class Usage(Answer):
    """The latest pictures."""

    usage: list[UsedGeneration]
    total: int
