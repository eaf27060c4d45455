"""The teachers of a run: loaded and checked, asked once or in every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.audio.augment import Gather, augmented
from cpprune.audio.config import MelSpec
from cpprune.config import RunConfig
from cpprune.distill.average import average
from cpprune.distill.cache import LogitsCache
from cpprune.distill.config import LOGITS_SUFFIX, UNCUT
from cpprune.distill.logits_file import check_finite, read_logits
from cpprune.distill.loss import PARTNER_TEACHER, SEEN, TEACHER
from cpprune.distill.teacher import Teacher, load_teacher
from cpprune.evaluation.predict import predict_positions
from cpprune.models.artifact import Model
from shards.errors import UserError
from shards.order import Ids
from shards.reader import Dataset

KEY = "distill.teachers"
# What is done to waveforms, and what changes the labels, reaches every teacher. The other augmentations
# act on the bins of one front end.
FOR_ALL = ("response", "roll", "mixup", "mixup_partner")


class Teaching:
    """The teachers of a run.

    Args:
        config: of the run.
        dataset: that it trains on.
        rows: of the dataset that are trained on.
        device: of this rank.
        cache: of logits of augmented clips, or None.

    Raises:
        UserError: a teacher cannot be loaded, or does not fit the dataset.

    Attributes:
        stored: averaged logits [rows of the dataset, K] of clips without augmentation, or None;
            rows that are not trained on hold zeros.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        rows: Ids,
        device: torch.device,
        cache: LogitsCache | None = None,
    ) -> None:
        self.config, self.dataset, self.rows, self.device = config, dataset, rows, device
        self.cache = cache
        self.stored: NDArray[np.float32] | None = None
        self._models: dict[int, Teacher] = {}
        self._logits: dict[int, NDArray[np.float32]] = {}  # of `rows`, by teacher
        for number, name in enumerate(config.distill.teachers):
            if name.endswith(LOGITS_SUFFIX):
                self._logits[number] = read_logits(Path(name), dataset, rows)
            elif name != UNCUT:
                self._models[number] = load_teacher(name, dataset, device, KEY)

    @property
    def awaits_uncut(self) -> bool:
        """Whether the run's own network is to be a teacher, and is not yet one."""
        names = self.config.distill.teachers
        return UNCUT in names and names.index(UNCUT) not in self._models

    def add_uncut(self, folder: Path) -> None:
        """Make the network in a model folder the teacher `uncut`.

        Raises:
            UserError: it cannot be loaded.
        """
        number = self.config.distill.teachers.index(UNCUT)
        try:
            self._models[number] = load_teacher(str(folder), self.dataset, self.device, KEY)
        except UserError as error:
            raise UserError(
                f"{KEY}: the network before its first pruning step is lost ({error}); start again with "
                "--resume never"
            ) from None
        self._logits.pop(number, None)

    def prepare(
        self, fetch: Callable[[], Callable[[Ids], Tensor]], alive: Callable[[], None]
    ) -> int:
        """Ask the teachers that have not been asked about the clips without augmentation.

        A collective operation; nothing happens in the mode `on_the_fly`.

        Args:
            fetch: makes the function that returns clips by their position in `rows`.
            alive: called now and then.

        Returns:
            The number of teachers that were asked.

        Raises:
            UserError: a teacher's logits are not finite, or clips cannot be read.
        """
        to_ask = self._models.keys() - self._logits.keys()
        if self.config.distill.mode == "on_the_fly" or not (to_ask or self._logits):
            return 0
        for number in sorted(to_ask):
            self._logits[number] = self._asked(self._models[number], fetch(), alive)
        if to_ask or self.stored is None:
            own = [torch.from_numpy(self._logits[number]) for number in sorted(self._logits)]
            mean = average(own, self._weights(self._logits), self.config.distill.average)
            self.stored = np.zeros((len(self.dataset), mean.shape[1]), np.float32)
            self.stored[self.rows] = mean.numpy()
        return len(to_ask)

    def _asked(
        self, teacher: Teacher, fetch: Callable[[Ids], Tensor], alive: Callable[[], None]
    ) -> NDArray[np.float32]:
        def classify(clips: Tensor) -> Tensor:
            alive()
            return teacher.logits(clips).to(self.device)

        logits = predict_positions(classify, fetch, len(self.rows))
        check_finite(logits, self.dataset, self.rows, f"{KEY}: {teacher.name}")
        return logits

    def inputs(self, own: Ids, partners: Ids | None, places: slice = slice(0)) -> dict[str, Tensor]:
        """Return the stored logits of a step's clips, and of what each is mixed with, on the host.

        Args:
            own: rows of the dataset's index.
            partners: the same of the clips that they are mixed with, or None.
            places: those of the clips in the epoch.
        """
        if self.cache is not None and (seen := self.cache.rows(places)) is not None:
            return {SEEN: seen}
        if self.stored is None:
            return {}
        found = {TEACHER: torch.from_numpy(self.stored[own])}
        if partners is not None:
            found[PARTNER_TEACHER] = torch.from_numpy(self.stored[partners])
        return found

    def see(
        self,
        x_bCFN: Tensor,
        spec: MelSpec | None,
        inputs: Mapping[str, Tensor],
        gather: Gather,
        responses_RN: Tensor | None = None,
    ) -> Tensor | None:
        """Return the teachers' averaged logits [b, K] of augmented clips, or None in other modes.

        Where they are among the step's inputs, no teacher is asked.

        A teacher with the student's front end sees what the student does; another sees the augmented
        waveforms through its own front end, mixed as the student's spectrograms are.

        Args:
            x_bCFN: what the student sees.
            spec: the student's front end.
            inputs: of the step, on the device.
            gather: returns the rows of all ranks, in rank order, given this rank's.
            responses_RN: impulse responses, on the device.
        """
        if SEEN in inputs:
            return inputs[SEEN]
        if self.config.distill.mode != "on_the_fly" or not self._models:
            return None
        shared = {name: inputs[name] for name in FOR_ALL if name in inputs}
        parts = []
        for number in sorted(self._models):
            teacher = self._models[number]
            assert isinstance(teacher.model, Model)
            features, seen = teacher.model.features, x_bCFN
            if features.spec != spec:
                augment = self.config.augment
                seen = augmented(features, inputs["clips"], shared, augment, gather, responses_RN)
            chunk = self.config.train.micro_batch_size or max(1, len(seen))
            logits = [teacher.logits_of_inputs(part) for part in torch.split(seen, chunk)]
            parts.append(torch.cat(logits))
        return average(parts, self._weights(self._models), self.config.distill.average)

    def _weights(self, teachers: Mapping[int, object]) -> list[float]:
        return [self.config.distill.weight(number) for number in sorted(teachers)]
