"""What the data cover for this model, and what a run is doing: estimates with intervals, each in a plain sentence."""
