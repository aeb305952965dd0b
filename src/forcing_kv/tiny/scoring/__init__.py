"""What a video of the embedded model is worth: rules that know the world, and shares over many videos."""
