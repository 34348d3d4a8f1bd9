from django.apps import AppConfig


class Desk(AppConfig):
    name = "desk"
    verbose_name = "Desktops"
