"""Where records come from and how they are split over clients."""
