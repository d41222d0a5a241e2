"Trajectories as text, and paths"
from a3t.core import Step, Trajectory
from a3t.files import data_folder, project_path, results_folder

def test_a_trajectory_prints_as_a_page():
    steps = (Step('I need it.', 'take pen', 'You take the pen.', 'sampled'),
             Step('', 'fly', 'Nothing happens.', valid=False))
    traj = Trajectory('t1', 'put', 'put the pen on the desk.', 'You see a desk.', steps)
    assert str(traj).split('\n') == ['put the pen on the desk. (lost, 2 steps, t1)', 'You see a desk.', '  I need it.',
                                     '> take pen [sampled]',
                                     'You take the pen.', '> fly [not understood]', 'Nothing happens.']
    assert repr(traj).startswith('Trajectory(task=')

def test_evidence_belongs_to_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv('A3T_DATA', str(tmp_path))
    assert data_folder() == tmp_path and project_path('data/runs/a') == tmp_path/'runs'/'a'
    assert project_path('data/results/cpu') == results_folder()/'cpu' and (results_folder()/'README.md').is_file()
