"""The paper's four tasks: `data`, `arms` and `training`, `sampling`, one module of scores a task, and the `report`."""
