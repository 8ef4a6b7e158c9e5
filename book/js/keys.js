// Keys that are held: by a keyboard, by fingers on buttons, or by both.

const ACTIONS = { arrowup: 1, w: 1, arrowdown: 2, s: 2 };

/** What a key of the keyboard does: 1 up, 2 down, undefined for others and in shortcuts. */
export function actionOf({ key, altKey, ctrlKey, metaKey }) {
  return altKey || ctrlKey || metaKey ? undefined : ACTIONS[key.toLowerCase()];
}

export class Held {
  constructor() {
    this.clear();
  }

  clear() {
    this.down = new Map();
    this.tapped = 0;
  }

  /** `who`, a key or a finger, presses for an action. */
  press(who, action) {
    if (this.down.has(who)) return; // a keyboard repeats what is held
    this.down.set(who, action);
    this.tapped = action;
  }

  release(who) {
    this.down.delete(who);
  }

  /** The action for one frame: of the newest key that is held, or was, since the last one; 0 for none. */
  take() {
    const action = this.tapped || [...this.down.values()].at(-1) || 0;
    this.tapped = 0;
    return action;
  }
}
