/** Runs one question at a time; of those that come meanwhile, only the newest is asked afterwards. */
export class Newest {
  private busy = false;
  private next: (() => Promise<void>) | undefined;

  ask(question: () => Promise<void>) {
    this.next = question;
    if (!this.busy) void this.work();
  }

  private async work() {
    this.busy = true;
    while (this.next) {
      const question = this.next;
      this.next = undefined;
      await question();
    }
    this.busy = false;
  }
}
