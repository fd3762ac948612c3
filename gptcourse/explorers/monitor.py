"""Watch a model learn: a live loss curve, tokens per second, samples and a stop button."""

import time
from collections import deque

import ipywidgets as widgets
from IPython import get_ipython

from gptcourse.checks import COUNT
from gptcourse.drawings import svg
from gptcourse.explorers.panel import Panel, answer_while_busy

POINTS = 300  # a picture has about 600 pixels for the curve, so more points than this cannot be seen


def clicks_arrive_while_a_cell_runs():
    """Return whether the page can reach Python now: the kernel has subshells and the page has opened one.

    JupyterLab 4.4 with ipykernel 7 sends what widgets say to a second thread of the kernel. Older kernels, Colab's
    among them, keep it waiting until the cell has ended.
    """
    try:
        kernel = get_ipython().kernel
        supported = "kernel subshells" in kernel.kernel_info["supported_features"]
        return bool(supported and kernel.shell_channel_thread.manager.list_subshell())
    except (AttributeError, KeyError):  # no notebook, or an older kernel
        return False


class TrainingMonitor(Panel):
    """Draw the loss while ``train`` runs: display it, then pass it as ``train(…, callback=monitor)``.

    ``config`` is the one given to ``train``. ``floor`` is (loss, label), drawn as a dashed line.
    ``sample()`` returns text; it is called every ``sample_steps`` steps, and the last three texts stay in view. The
    picture is drawn at most five times a second and at the last step. The stop button is there while a click can
    arrive; interrupting the kernel works everywhere. One monitor may watch several runs in turn: a stop ends one.
    """

    seconds_between_pictures = 0.2

    def __init__(self, config, *, floor=None, sample=None, sample_steps=100):
        self.config, self.floor, self.sample = config, floor, sample
        self.sample_steps = COUNT("sample_steps", sample_steps)
        self.status, self.picture, self.texts = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.stop = widgets.Button(icon="stop", layout=widgets.Layout(display="none"))
        self.stop.on_click(self._stop)
        self._begin()
        # Not the status: its speed would differ each time the notebook is saved.
        super().__init__([self.status, self.picture, self.stop, self.texts], [self.picture, self.texts])
        self.status.value = svg.paragraph("Ready: the curve appears when training starts.")

    def _begin(self):
        """Forget an earlier run, its stop included."""
        self.samples, self.progress, self.step, self.stopped = deque(maxlen=3), deque(maxlen=15), 0, False
        self.stop.disabled, self.stop.description = False, "Stop training"
        answer_while_busy(self.stop)

    def __call__(self, history):
        """Draw ``history`` if it is time to, and return True once the stop button was pressed."""
        now, step = time.monotonic(), len(history.loss)
        if step == 1 or step <= self.step:
            self._begin()
        self.step, stopped = step, self.stopped
        last = step >= self.config.steps or stopped or history.stopped is not None
        if self.sample and (step % self.sample_steps == 0 or last):
            self.samples.append((step, self.sample()))
            self.texts.value = "".join(
                f'<div style="display:grid;grid-template-columns:110px 1fr;max-width:{svg.WIDTH}px;padding-top:8px">'
                f"{svg.paragraph(f'after {n:,} steps', opacity=0.65)}{svg.paragraph(text, mono=True)}</div>"
                for n, text in self.samples
            )
        if last or not self.progress or now - self.progress[-1][0] >= self.seconds_between_pictures:
            self.progress.append((now, history.tokens[-1]))
            self.draw(history)
            self._show_stop(not last)
        if last:
            self._begin()
            self.keep()
        return stopped

    def draw(self, history):
        """Show ``history`` as it is now."""
        (then, first), (now, tokens) = self.progress[0], self.progress[-1]
        speed = (tokens - first) / (now - then) if now > then else 0.0
        numbers = [
            f"step {len(history.loss):,} of {self.config.steps:,}",
            f"loss {history.loss[-1]:.3f} nats per token",
        ]
        numbers += [f"validation {history.eval_loss[-1]:.3f}"] if history.eval_loss else []
        numbers += [f"{svg.short(speed)} tokens/s"] if speed else []
        numbers += ["stopped"] if self.stopped or history.stopped else []
        self.status.value = svg.paragraph("  ·  ".join(numbers))
        stride = -(-len(history.loss) // POINTS)
        series = {"training": (list(history.step)[::stride], list(history.loss)[::stride])}
        if history.eval_loss:
            series["validation"] = (history.eval_step, history.eval_loss)
        self.picture.value = svg.line_chart(
            series, labels=("step", "loss (nats per token)"), floor=self.floor, x_range=(0, max(self.config.steps, 1))
        )

    def _show_stop(self, running):
        """Show the button while a run can be stopped; the end of the cell, however it came, hides it."""
        visible, shell = running and clicks_arrive_while_a_cell_runs(), get_ipython()
        if visible and shell and self.stop.layout.display == "none":
            shell.events.register("post_run_cell", self._cell_ended)
        self.stop.layout.display = "" if visible else "none"

    def _cell_ended(self, _result):
        get_ipython().events.unregister("post_run_cell", self._cell_ended)
        self._begin()
        self.stop.layout.display = "none"

    def _stop(self, _button):
        self.stopped = True
        self.stop.disabled, self.stop.description = True, "Stopping…"
