"""Sparse autoencoders (SAEs) through SAELens: load, check, read, find, steer, measure, train."""

from steerkit.sae.attribution import FeatureAttribution as FeatureAttribution
from steerkit.sae.attribution import feature_attribution as feature_attribution
from steerkit.sae.autoencoder import Autoencoder as Autoencoder
from steerkit.sae.cards import Context as Context
from steerkit.sae.cards import FeatureCard as FeatureCard
from steerkit.sae.cards import feature_cards as feature_cards
from steerkit.sae.dashboard import FeatureDashboard as FeatureDashboard
from steerkit.sae.dashboard import FeatureView as FeatureView
from steerkit.sae.dashboard import feature_dashboard as feature_dashboard
from steerkit.sae.encoding import TokenFeatures as TokenFeatures
from steerkit.sae.encoding import feature_activations as feature_activations
from steerkit.sae.encoding import feature_statistics as feature_statistics
from steerkit.sae.finding import find_features as find_features
from steerkit.sae.found import FoundFeature as FoundFeature
from steerkit.sae.found import FoundFeatures as FoundFeatures
from steerkit.sae.loading import load_sae as load_sae
from steerkit.sae.metrics import Quality as Quality
from steerkit.sae.metrics import evaluate_sae as evaluate_sae
from steerkit.sae.running import FeatureStatistics as FeatureStatistics
from steerkit.sae.training import train_sae as train_sae
