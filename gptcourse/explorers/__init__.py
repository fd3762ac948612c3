"""Sliders, quizzes and live pictures for the notebooks, made of ipywidgets' core widgets only (7.7.1 and later).

Each explorer is one widget. Its sliders are in ``.controls`` (a dict by name) and its drawing in
``.picture.value``, a string of HTML, so ``explorer.controls["temperature"].value = 2.0`` moves a slider with no
browser at all. ``import gptcourse`` does not import this package, and with it ipywidgets; nothing but a notebook
needs it.
"""

# ruff: noqa: F401
from gptcourse.explorers.activations import bend_explorer, initialisation_explorer
from gptcourse.explorers.attention import attention_scale_explorer, rotary_explorer, window_explorer
from gptcourse.explorers.bpe import bpe_explorer
from gptcourse.explorers.chat import ChatPanel as chat_panel
from gptcourse.explorers.clinic import ClinicExplorer as clinic_explorer
from gptcourse.explorers.decoding import DecodingExplorer as decoding_explorer
from gptcourse.explorers.decoding import SettingsComparison as compare_settings
from gptcourse.explorers.heads import attention_explorer
from gptcourse.explorers.modern import memory_explorer, router_explorer
from gptcourse.explorers.monitor import TrainingMonitor
from gptcourse.explorers.predict import predict
from gptcourse.explorers.preferences import PolicyMonitor, dpo_explorer, frontier_explorer, thinking_explorer
from gptcourse.explorers.scaling import (
    collective_explorer,
    device_explorer,
    forecast_explorer,
    law_explorer,
    pipeline_explorer,
    size_explorer,
)
from gptcourse.explorers.schedule import schedule_explorer
from gptcourse.explorers.threshold import threshold_explorer
from gptcourse.explorers.time_machine import time_machine_explorer
from gptcourse.explorers.upload import upload_text
from gptcourse.explorers.writing import WritingPanel as writing_panel
