"""What a run will take, before anything is loaded; and a rehearsal of it on a tiny model of the same architecture."""
