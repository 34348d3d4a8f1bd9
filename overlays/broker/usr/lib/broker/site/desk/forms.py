"""What people fill in."""

from django import forms
from django.contrib.auth import get_user_model


class NewPerson(forms.ModelForm):
    """A person to come. The password is made by the broker and told once."""

    is_staff = forms.BooleanField(label="Administrator", required=False)

    class Meta:
        model = get_user_model()
        fields = ["username", "is_staff"]


class Rights(forms.Form):
    """What a person may do."""

    is_active = forms.BooleanField(label="May log in", required=False)
    is_staff = forms.BooleanField(label="Administrator: uses every desktop, decides on people", required=False)
    desktops = forms.MultipleChoiceField(label="Desktops", required=False, widget=forms.CheckboxSelectMultiple)

    def __init__(self, *args, names=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["desktops"].choices = [(n, n) for n in names]
