"""Config files and the overrides of the command line.

The only room that knows `ml_collections`: defaults as a `ConfigDict`, files and overrides, and the
grid of a sweep, whose runs are overrides of one file. What comes out are `runs.settings.Settings`,
in which every key and value has been checked. What a value means and how it is used does not belong
here: that stands in the section of the room that reads it.
"""
