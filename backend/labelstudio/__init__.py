"""The Label Studio protocol: label configs, regions, requests, routes."""
